// Does fma.oob turn TMA's out-of-bounds fill, and only that, into zero, so that a NaN in the data survives?
//
// Decides the prologue of the halo convolution: relu(x * scale + shift) with one packed fma.rn.oob.relu, on a halo that
// TMA filled with its own NaN where it lies outside of the image.  With "no", the prologue masks padded pixels by
// coordinate, which costs a compare and a select per element.  Asked for bfloat16 and float16.
#include "micro.cuh"

constexpr int kElements = 65536, kRow = 64, kRows = kElements / kRow;

struct Answers {
    uint16_t fill[kRow];           // a row outside of the tensor, as TMA filled it
    uint32_t of_fill;              // relu(1 * fill + 1), packed
    uint16_t loaded[kElements];    // every bit pattern, after its way through TMA
    uint16_t computed[kElements];  // relu(1 * x + 1) of each
};

template <bool kHalf>
DEVICE uint32_t fma_oob_relu(uint32_t x, uint32_t scale, uint32_t shift) {
    uint32_t y;
    if constexpr (kHalf)
        asm("fma.rn.oob.relu.f16x2 %0, %1, %2, %3;" : "=r"(y) : "r"(x), "r"(scale), "r"(shift));
    else
        asm("fma.rn.oob.relu.bf16x2 %0, %1, %2, %3;" : "=r"(y) : "r"(x), "r"(scale), "r"(shift));
    return y;
}

// Row `kRows` is the first one outside.
template <bool kHalf>
__global__ void load_rows(const __grid_constant__ CUtensorMap map, Answers* answers) {
    __shared__ alignas(128) uint16_t row[kRow];
    __shared__ uint64_t barrier;
    constexpr uint32_t kOne = kHalf ? 0x3C003C00 : 0x3F803F80;
    if (threadIdx.x == 0) mbarrier_init(shared_address(&barrier));
    __syncthreads();
    if (threadIdx.x == 0) {
        mbarrier_expect(shared_address(&barrier), sizeof(row));
        load_2d(shared_address(row), map, shared_address(&barrier), 0, blockIdx.x);
    }
    mbarrier_wait(shared_address(&barrier), 0);
    uint16_t x = row[threadIdx.x];
    uint32_t y = fma_oob_relu<kHalf>(x | uint32_t(x) << 16, kOne, kOne);
    if (blockIdx.x == kRows) {
        answers->fill[threadIdx.x] = x;
        if (threadIdx.x == 0) answers->of_fill = y;
    } else {
        answers->loaded[blockIdx.x * kRow + threadIdx.x] = x;
        answers->computed[blockIdx.x * kRow + threadIdx.x] = uint16_t(y);
    }
}

// One sentence about a type; `good` becomes false where the prologue could not rely on it.
template <bool kHalf>
std::string ask(const uint16_t* patterns, Answers* answers, bool* good) {
    CUtensorMap map;
    auto type = kHalf ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
    encoded_well(encode<2>(&map, type, on_device(patterns, kElements), {kRow, kRows}, {kRow * 2}, {kRow, 1},
                           CU_TENSOR_MAP_FLOAT_OOB_FILL_NAN_REQUEST_ZERO_FMA));
    load_rows<kHalf><<<kRows + 1, kRow>>>(map, answers);
    launched_well();
    int clamped = 0, last_clamped = 0, changed = 0, lost = 0;
    bool even = true;
    for (uint16_t x : answers->fill) even &= x == answers->fill[0];
    for (int x = 0; x < kElements; ++x) {
        bool is_nan = (x & 0x7FFF) > (kHalf ? 0x7C00 : 0x7F80),
             became_nan = (answers->computed[x] & 0x7FFF) > (kHalf ? 0x7C00 : 0x7F80);
        changed += answers->loaded[x] != x;
        if (is_nan && answers->computed[x] == 0) ++clamped, last_clamped = x;
        lost += is_nan && !became_nan && x != answers->fill[0];
    }
    *good &= even && answers->of_fill == 0 && lost == 0;
    char text[512];
    std::snprintf(
        text, sizeof(text),
        "%s: fill 0x%04x%s, of it 0x%08x; NaN patterns made zero: %d (the last 0x%04x); NaNs other than the fill that "
        "do not come out as NaN: %d; patterns that TMA changes inside: %d. ",
        kHalf ? "float16" : "bfloat16", answers->fill[0], even ? "" : " (not everywhere)", answers->of_fill, clamped,
        last_clamped, lost, changed);
    return text;
}

int main() {
    require_hopper();
    static uint16_t patterns[kElements];
    for (int x = 0; x < kElements; ++x) patterns[x] = uint16_t(x);
    auto* found = answers<Answers>(1);
    bool good = true;
    std::string detail = ask<false>(patterns, found, &good) + ask<true>(patterns, found, &good);
    finish(good ? "yes" : "no", "%s", detail.c_str());
}
