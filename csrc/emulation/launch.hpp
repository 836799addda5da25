// The grid under emulation.
#pragma once
#include <atomic>
#include <exception>
#include <mutex>
#include <thread>

#include "emulation/cluster.hpp"

namespace emu {

// Runs the grid: each worker takes the next cluster and runs it to its end, so clusters must not wait for each other.
inline void launch(const LaunchShape& shape, const std::function<void()>& kernel) {
    std::atomic<int> next_block = 0;
    std::exception_ptr failure;
    std::mutex failure_guard;
    auto work = [&] {
        try {
            for (int block; (block = next_block.fetch_add(shape.cluster)) < shape.blocks;)
                ClusterRun(shape, block, kernel).run();
        } catch (...) {
            std::lock_guard guard(failure_guard);
            failure = std::current_exception();
            next_block = shape.blocks;
        }
    };
    std::vector<std::thread> workers;
    for (int i = 1; i < shape.workers; ++i) workers.emplace_back(work);
    work();
    for (std::thread& worker : workers) worker.join();
    if (failure) std::rethrow_exception(failure);
}

}  // namespace emu
