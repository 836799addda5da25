// May a tensor map's stride be smaller than the extent below it, so that boxes of one load overlap in memory?
//
// Decides the stem: a 7 x 7 window of stride 2 on channels padded to 4 reads 8 pixels of 8 bytes (one more than it
// needs) from a start that moves by 16 bytes, so a map of (32 elements, Q windows 16 bytes apart, H rows) loads im2col
// rows of 64 bytes without gathering.  With "no", the stem loads whole lines and lets its threads form the rows.
#include "micro.cuh"

constexpr int kPixels = 230, kLines = 6, kChannels = 4, kWindow = 8, kOutputs = 112;
constexpr int kLine = kPixels * kChannels, kTaken = kWindow * kChannels;

__global__ void load_windows(const __grid_constant__ CUtensorMap map, uint16_t* windows) {
    __shared__ alignas(128) uint16_t box[kOutputs * kTaken];
    __shared__ uint64_t barrier;
    if (threadIdx.x == 0) mbarrier_init(shared_address(&barrier));
    __syncthreads();
    if (threadIdx.x == 0) {
        mbarrier_expect(shared_address(&barrier), sizeof(box));
        asm volatile(
            "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, "
            "%5}], "
            "[%2];" ::"r"(shared_address(box)),
            "l"(&map), "r"(shared_address(&barrier)), "r"(0), "r"(0), "r"(int(blockIdx.x))
            : "memory");
    }
    mbarrier_wait(shared_address(&barrier), 0);
    for (int i = threadIdx.x; i < kOutputs * kTaken; i += blockDim.x)
        windows[blockIdx.x * kOutputs * kTaken + i] = box[i];
}

int main() {
    require_hopper();
    static uint16_t image[kLines * kLine];
    for (int i = 0; i < kLines * kLine; ++i) image[i] = uint16_t(i);
    CUtensorMap map;
    CUresult result = encode<3>(&map, CU_TENSOR_MAP_DATA_TYPE_UINT16, on_device(image, kLines * kLine),
                                {kTaken, kOutputs, kLines}, {2 * kChannels * 2, kLine * 2}, {kTaken, kOutputs, 1});
    if (result != CUDA_SUCCESS) finish("no", "cuTensorMapEncodeTiled refuses the map: error %d", int(result));
    auto* windows = answers<uint16_t>(kLines * kOutputs * kTaken);
    load_windows<<<kLines, 128>>>(map, windows);
    launched_well();
    int wrong = 0;
    for (int line = 0; line < kLines; ++line)
        for (int q = 0; q < kOutputs; ++q)
            for (int i = 0; i < kTaken; ++i)
                wrong += windows[(line * kOutputs + q) * kTaken + i] != image[line * kLine + q * 2 * kChannels + i];
    finish(wrong ? "no" : "yes", "%d of %d elements are not those of their window", wrong, kLines * kOutputs * kTaken);
}
