// May a wgmma descriptor of a K-major operand start at any row of a 128-byte swizzled tile?
//
// Decides whether the halo convolutions (conv3x3_halo, forward and input gradient, and bottleneck_inference) can issue
// their nine taps as shifted descriptors on one tile: base offset 0, groups of eight pixels one halo row apart, or two
// where the stride is 2, on a slice of channels that begins at any multiple of 128 bytes.  csrc/emulation answers "yes"
// (MatrixDescriptor: the swizzle takes its bits from the sum of start and offset), so with "no" those kernels are wrong
// on the device although their tests pass.  The detail then says for which distances, and whether the base offset field
// repairs it; if not even that, the halo must be copied once per column tap.
#include "wgmma_rows.cuh"

// Row r of B holds r, in two parts so that both 16-byte chunks of one k16 slice are asked for and bfloat16 is exact,
// and zero elsewhere; A is all ones: d[m][n] is the row that was read as pixel n.
__global__ void read_rows(int slice, int start_row, int group_bytes, int base_offset, float* row_read) {
    extern __shared__ __align__(1024) uint8_t tile[];
    for (int i = threadIdx.x; i < kRows * kChannels; i += blockDim.x) {
        int row = i / kChannels, channel = i % kChannels;
        int value = channel == slice * 16 ? row % 16 : channel == slice * 16 + 8 ? row / 16 * 16 : 0;
        store_element(tile, row, channel, bf16_of(value));
    }
    stores_seen_by_wgmma();
    const uint32_t ones[4] = {0x3F803F80, 0x3F803F80, 0x3F803F80, 0x3F803F80};
    uint32_t start = shared_address(tile) + start_row * kRowBytes + slice * 32;
    float d[32] = {};
    multiply<0>(d, ones, descriptor(start, group_bytes, base_offset));
    if (threadIdx.x < 4)  // the lanes of row 0
        for (int i = 0; i < 32; ++i)
            if (i / 2 % 2 == 0) row_read[i / 4 * 8 + threadIdx.x * 2 + i % 2] = d[i];
}

int main() {
    require_hopper();
    auto* row_read = answers<float>(kChannels);
    ask(
        [=](int start_row, int group_bytes, int base_offset) {
            int right = 0;
            for (int slice = 0; slice < 4; ++slice) {
                read_rows<<<1, 128, kBytes>>>(slice, start_row, group_bytes, base_offset, row_read);
                launched_well();
                for (int n = 0; n < 64; ++n)
                    right += row_read[n] == float(start_row + n / 8 * group_bytes / kRowBytes + n % 8);
            }
            return right;
        },
        4 * 64);
}
