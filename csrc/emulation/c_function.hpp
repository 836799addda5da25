// What the C functions over a launcher of Hopper kernels share: a schedule before, words for what went wrong behind.
#pragma once
#include <stdexcept>
#include <string>

#include "launch/hopper.h"
#include "launch/launch.h"

// Null, or what went wrong: "ValueError: ..." for arguments that the launcher refuses, "RuntimeError: ..." for the
// rest. `blocks` is the number of multiprocessors.
template <class Run>
const char* message_of(int blocks, int seed, int workers, Run run) {
    static thread_local std::string message;
    launch::schedule = {seed, workers};
    launch::emulated_multiprocessors = blocks;
    launch::loaded_bytes = 0;
    try {
        run();
        return nullptr;
    } catch (const std::invalid_argument& error) {
        message = std::string("ValueError: ") + error.what();
    } catch (const std::exception& error) {
        message = std::string("RuntimeError: ") + error.what();
    }
    return message.c_str();
}
