// The rules of kernels that are launched as dependent ones, kept and broken. Run by
// tests/kernels/test_dependent_launch.py.
#include "device/gemm.cuh"
#include "emulation/c_function.hpp"

namespace {

constexpr SmemAddress kSource = 0, kBarrier = 1024;

alignas(16) uint16_t map_memory[512];
alignas(16) float vector_memory[4];
uint32_t counter;

TensorMap map_of(bool constant) {
    TensorMap map;
    map.base = map_memory;
    map.size = {64, 8, 1, 1, 1};
    map.box = {64, 8, 1, 1, 1};
    map.stride_bytes = {2, 128, 1024, 1024, 0};
    map.constant = constant;
    return map;
}

void load_box(bool constant) {
    mbarrier_arrive_expect_tx(kBarrier, 1024);
    tma_load_4d(kSource, map_of(constant), kBarrier, 0, 0, 0, 0);
    mbarrier_wait(kBarrier, 0);
}

void store_box() {
    for (SmemAddress at = kSource; at < kSource + 1024; at += sizeof(Chunk)) store_shared(at, Chunk{});
    fence_proxy_async();
    tma_store_4d(map_of(false), kSource, 0, 0, 0, 0);
    tma_store_commit();
    tma_store_wait_read();
}

void touch(const std::string& how) {
    if (how == "TMA load") load_box(false);
    if (how == "TMA load of a constant") load_box(true);
    if (how == "TMA store") store_box();
    if (how == "load") load_global(vector_memory);
    if (how == "load of a pair") load_pair(vector_memory);
    if (how == "ordered load") load_ordered(map_memory);
    if (how == "read-only load") load_global(map_memory);
    if (how == "store") store_global(vector_memory, Floats4{});
    if (how == "atomic") atomic_increment(&counter);
}

// One warp, of which thread 0 touches global memory; `waiting` says which thread has waited before, -1 none.
void run(const std::string& how, int waiting, bool dependent) {
    emu::LaunchShape shape;
    shape.threads = 32;
    shape.shared_bytes = kBarrier + 8;
    shape.dependent = dependent;
    emu::launch(shape, [&] {
        if (thread_index() == 0) {
            mbarrier_init(kBarrier, 1);
            mbarrier_init_fence();
        }
        if (thread_index() == waiting) wait_for_previous_grid();
        warp_sync();
        if (thread_index() == 0) touch(how);
    });
}

}  // namespace

extern "C" const char* check_dependent(const char* how, int waiting, int dependent) {
    return message_of(1, 0, 1, [&] { run(how, waiting, dependent); });
}
