// Does L2 feed every multiprocessor 64 bytes a clock through TMA, all of them at once?
//
// Decides how much reuse in shared memory a convolution needs.  Without a halo, a 3x3 loads 96 bytes a clock and
// multiprocessor at 64 channels and 64 at 128 channels to keep the tensor cores busy; with "yes" the 128-channel layers
// may do without the halo, with "no" the halo pays there too.  The detail gives the rate and its share by clock.
#include <algorithm>
#include <vector>

#include "micro.cuh"

constexpr int kBoxRows = 128, kBoxBytes = kBoxRows * 128, kStages = 12, kLoads = 4096;
constexpr size_t kBuffer = size_t{16} << 20;  // a quarter of an H200's L2

// Each block goes round the buffer from a start of its own, twelve boxes in flight; cycles[block] is how long it took.
__global__ void load_round(const __grid_constant__ CUtensorMap map, int boxes, long long* cycles) {
    extern __shared__ __align__(1024) uint8_t stages[];
    __shared__ uint64_t full[kStages];
    if (threadIdx.x != 0) return;
    for (uint64_t& barrier : full) mbarrier_init(shared_address(&barrier));
    long long start = clock64();
    for (int load = 0; load < kLoads + kStages; ++load) {
        int stage = load % kStages;
        uint32_t barrier = shared_address(&full[stage]);
        if (load >= kStages) mbarrier_wait(barrier, (load / kStages - 1) % 2);
        if (load >= kLoads) continue;
        mbarrier_expect(barrier, kBoxBytes);
        int box = (blockIdx.x * 37 + load) % boxes;
        load_2d(shared_address(stages) + stage * kBoxBytes, map, barrier, 0, box * kBoxRows);
    }
    cycles[blockIdx.x] = clock64() - start;
}

int main() {
    cudaDeviceProp device = require_hopper();
    uint16_t* buffer;
    CHECK(cudaMalloc(&buffer, kBuffer));
    CHECK(cudaMemset(buffer, 1, kBuffer));
    CUtensorMap map;
    encoded_well(encode<2>(&map, CU_TENSOR_MAP_DATA_TYPE_UINT16, buffer, {64, kBuffer / 128}, {128}, {64, kBoxRows}));
    auto* cycles = answers<long long>(device.multiProcessorCount);
    CHECK(cudaFuncSetAttribute(load_round, cudaFuncAttributeMaxDynamicSharedMemorySize, kStages * kBoxBytes));
    cudaEvent_t start, end;
    CHECK(cudaEventCreate(&start));
    CHECK(cudaEventCreate(&end));
    double bytes = double(device.multiProcessorCount) * kLoads * kBoxBytes;
    std::vector<double> rates, by_clock;  // TB/s; bytes a clock of the slowest multiprocessor
    for (int round = 0; round < 12; ++round) {
        CHECK(cudaEventRecord(start));
        load_round<<<device.multiProcessorCount, 32, kStages * kBoxBytes>>>(map, kBuffer / kBoxBytes, cycles);
        CHECK(cudaEventRecord(end));
        launched_well();
        float milliseconds;
        CHECK(cudaEventElapsedTime(&milliseconds, start, end));
        long long longest = *std::max_element(cycles, cycles + device.multiProcessorCount);
        if (round < 2) continue;  // the first fill L2 and raise the clocks
        rates.push_back(bytes / milliseconds * 1e-9);
        by_clock.push_back(double(kLoads) * kBoxBytes / double(longest));
    }
    std::sort(rates.begin(), rates.end());
    std::sort(by_clock.begin(), by_clock.end());
    double rate = rates[rates.size() / 2], clock = by_clock[by_clock.size() / 2];
    finish(clock >= 64 ? "yes" : "no",
           "median of %d rounds: %.2f TB/s over %d multiprocessors, %.1f bytes a clock on the slowest; boxes of 16 KB, "
           "%d in flight each, a 16 MB buffer",
           int(rates.size()), rate, device.multiProcessorCount, clock, kStages);
}
