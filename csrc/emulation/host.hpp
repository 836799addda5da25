// What a kernel's host file offers to Python: its launchers, and the questions that they answer, as rows of a table.
#pragma once
#include <bit>
#include <cstring>
#include <functional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "emulation/c_function.hpp"
#include "emulation/counters.hpp"

namespace host {

struct Row {
    const char* name;
    std::string kinds;  // of its parameters, a launcher's stream left out: f for a floating-point number, else i
    std::function<int64_t(const int64_t*)> call;
};

// Every argument crosses as 64 bits: addresses and integers as they are, a floating-point number as a double's.
template <class T>
T argument(int64_t bits) {
    if constexpr (std::is_floating_point_v<T>)
        return static_cast<T>(std::bit_cast<double>(bits));
    else
        return static_cast<T>(bits);
}

template <class Result, class... Parameters>
Row row(const char* name, Result (*function)(Parameters...)) {
    auto call = [function](const int64_t* arguments) {
        return [&]<size_t... kIndex>(std::index_sequence<kIndex...>) -> int64_t {
            if constexpr (!std::is_void_v<Result>) return function(argument<Parameters>(arguments[kIndex])...);
            function(argument<Parameters>(arguments[kIndex])...);
            return 0;
        }(std::index_sequence_for<Parameters...>{});
    };
    std::string kinds = {(std::is_floating_point_v<Parameters> ? 'f' : 'i')...};
    if (std::is_void_v<Result>) kinds.pop_back();
    return {name, kinds, call};
}

const std::vector<Row>& table();  // HOST defines it

inline const Row* find(const char* name) {
    for (const Row& row : table())
        if (std::strcmp(row.name, name) == 0) return &row;
    return nullptr;
}

}  // namespace host

#define HOST_ROW(function) host::row(#function, launch::function)
#define HOST(...)                                           \
    const std::vector<host::Row>& host::table() {           \
        static const std::vector<Row> rows = {__VA_ARGS__}; \
        return rows;                                        \
    }

#define HOST_FUNCTION extern "C" __attribute__((used)) inline

// The kinds of a row's parameters; null where there is no such row.
HOST_FUNCTION const char* kinds_of(const char* name) {
    const host::Row* row = host::find(name);
    return row ? row->kinds.c_str() : nullptr;
}

// Calls a row, whose arguments a zero follows, on a GPU of so many multiprocessors: null, or what went wrong.
HOST_FUNCTION const char* call_row(const char* name, const int64_t* arguments, int64_t* answer, int multiprocessors,
                                   int seed, int workers) {
    emu::loaded_element_bytes = 0;
    emu::stored_output_bytes = 0;
    return message_of(multiprocessors, seed, workers, [&] { *answer = host::find(name)->call(arguments); });
}

// Bytes of what counts its traffic that the last run moved: out of global memory by TMA loads, out of it element by
// element, and into it by TMA stores.
HOST_FUNCTION int64_t loaded_bytes() { return launch::loaded_bytes; }
HOST_FUNCTION int64_t loaded_element_bytes() { return emu::loaded_element_bytes; }
HOST_FUNCTION int64_t stored_bytes() { return emu::stored_output_bytes; }
