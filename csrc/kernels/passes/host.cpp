// The passes that belong to no convolution, launchers and kernels, compiled for the CPU: one C function for ctypes.
#include <array>
#include <utility>

#include "kernels/passes/add_act.cu"
#include "kernels/passes/global_avg_pool.cu"
#include "kernels/passes/pool.cu"
#include "kernels/passes/statistics.cu"

namespace {

// Every argument crosses as 64 bits: addresses and integers as they are, a double as its bits.
template <class T>
T argument(int64_t bits) {
    if constexpr (std::is_floating_point_v<T>)
        return std::bit_cast<double>(bits);
    else
        return static_cast<T>(bits);
}

template <class... Parameters>
void apply(void (*launcher)(Parameters...), const int64_t* arguments, int count) {
    if (count != sizeof...(Parameters)) emu::fail("%zu arguments expected, got %d", sizeof...(Parameters), count);
    [&]<size_t... kIndex>(std::index_sequence<kIndex...>) {
        launcher(argument<Parameters>(arguments[kIndex])...);
    }(std::index_sequence_for<Parameters...>{});
}

void call_by_name(const std::string& name, const int64_t* arguments, int count) {
    if (name == "bn_add_act") return apply(launch::bn_add_act, arguments, count);
    if (name == "bn_act_backward") return apply(launch::bn_act_backward, arguments, count);
    if (name == "bn_backward_apply") return apply(launch::bn_backward_apply, arguments, count);
    if (name == "bn_relu_maxpool") return apply(launch::bn_relu_maxpool, arguments, count);
    if (name == "bn_relu_maxpool_backward") return apply(launch::bn_relu_maxpool_backward, arguments, count);
    if (name == "global_avg_pool") return apply(launch::global_avg_pool, arguments, count);
    if (name == "channel_stats") return apply(launch::channel_stats, arguments, count);
    if (name == "merge_partials") return apply(launch::merge_partials, arguments, count);
    if (name == "bn_finalize") return apply(launch::bn_finalize, arguments, count);
    if (name == "sum_partials") return apply(launch::sum_partials, arguments, count);
    emu::fail("there is no kernel %s", name.c_str());
}

}  // namespace

// Null, or what went wrong: "ValueError: ..." for arguments that the launcher refuses, "RuntimeError: ..." for the
// rest.
extern "C" const char* run_pointwise(const char* name, const int64_t* arguments, int count, int seed, int workers) {
    static thread_local std::string message;
    launch::schedule = {seed, workers};
    try {
        call_by_name(name, arguments, count);
        return nullptr;
    } catch (const std::invalid_argument& error) {
        message = std::string("ValueError: ") + error.what();
    } catch (const std::exception& error) {
        message = std::string("RuntimeError: ") + error.what();
    }
    return message.c_str();
}
