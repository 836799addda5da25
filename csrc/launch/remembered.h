// What the CUDA runtime says of a device, or of a kernel on it, does not change: it is asked once, so that no launch
// spends the host's time on it again.
#pragma once
#include <cuda_runtime_api.h>

#include <map>
#include <mutex>
#include <string>
#include <tuple>

#include "launch/cuda_error.h"

namespace launch {

// `ask()`; or, for a kernel (null: the device alone) and a detail that were asked about on this device before, what it
// said then. Each caller's question has a memory of its own, `ask` being a type of its own.
template <class Ask>
int remembered(const std::string& call, const void* kernel, int detail, Ask ask) {
    static std::mutex mutex;
    static std::map<std::tuple<int, const void*, int>, int> answers;
    int device = 0;
    require_success(call, cudaGetDevice(&device));
    std::lock_guard lock(mutex);
    auto [answer, is_new] = answers.try_emplace({device, kernel, detail});
    if (!is_new) return answer->second;
    try {
        return answer->second = ask(device);
    } catch (...) {
        answers.erase(answer);
        throw;
    }
}

}  // namespace launch
