// May a wgmma descriptor of an MN-major operand start at any row of a 128-byte swizzled tile?
//
// Decides the halo weight gradient, whose GEMM sums over pixels: there pixels run along k and channels along n, so a
// tap is a shift along k.  csrc/emulation answers "yes" here as for K-major operands; with
// "no", the weight gradient loads one tile per column tap instead of one halo.
#include "wgmma_rows.cuh"

// A is the identity on its first 16 rows, so that d[m][n] is channel n of the row that was read as pixel m.  The rows
// hold their own number, or their channels' numbers: both must come out.  (Numbers above 256 are rounded, to 256 or
// more; 16 pixels come from rows below that.)
__global__ void read_rows(bool store_channels, int start_row, int group_bytes, int base_offset, float* read) {
    extern __shared__ __align__(1024) uint8_t tile[];
    for (int i = threadIdx.x; i < kRows * kChannels; i += blockDim.x)
        store_element(tile, i / kChannels, i % kChannels, bf16_of(store_channels ? i % kChannels : i / kChannels));
    stores_seen_by_wgmma();
    int group = threadIdx.x % 32 / 4, pair = threadIdx.x % 4 * 2;
    uint32_t diagonal = threadIdx.x >= 32 ? 0 : group == pair ? 0x3F80 : group == pair + 1 ? 0x3F800000 : 0;
    const uint32_t identity[4] = {diagonal, 0, 0, diagonal};  // rows 0 to 7 and 8 to 15 of the first warp
    float d[32] = {};
    multiply<1>(d, identity, descriptor(shared_address(tile) + start_row * kRowBytes, group_bytes, base_offset));
    if (threadIdx.x < 32)
        for (int i = 0; i < 32; ++i) read[(group + i / 2 % 2 * 8) * kChannels + i / 4 * 8 + pair + i % 2] = d[i];
}

int main() {
    require_hopper();
    auto* read = answers<float>(16 * kChannels);
    ask(
        [=](int start_row, int group_bytes, int base_offset) {
            int right = 0;
            for (bool store_channels : {false, true}) {
                read_rows<<<1, 128, kBytes>>>(store_channels, start_row, group_bytes, base_offset, read);
                launched_well();
                for (int i = 0; i < 16 * kChannels; ++i) {
                    int pixel = i / kChannels, row = start_row + pixel / 8 * group_bytes / kRowBytes + pixel % 8;
                    right += read[i] == float(store_channels ? i % kChannels : row);
                }
            }
            return right;
        },
        2 * 16 * kChannels);
}
