// One wgmma.m64n64k16 over 64-channel rows of 128 bytes in shared memory, read from a start inside the 1024-byte
// swizzle pattern: what a halo convolution does for each tap.  The operand is B; A stays in registers.
#pragma once
#include "micro.cuh"

constexpr int kRows = 304, kRowBytes = 128, kChannels = 64;
constexpr int kBytes = kRows * kRowBytes;

// bfloat16 of a small non-negative integer: exact up to 256.
DEVICE uint16_t bf16_of(int value) { return uint16_t(__float_as_uint(float(value)) >> 16); }

// The 128-byte swizzle: 16-byte chunk c of row r lies at chunk c ^ (r % 8), as TMA writes it to an aligned tile.
DEVICE void store_element(uint8_t* tile, int row, int channel, uint16_t value) {
    int chunk = (channel / 8) ^ (row % 8);
    *reinterpret_cast<uint16_t*>(tile + row * kRowBytes + chunk * 16 + channel % 8 * 2) = value;
}

// Behind every thread's stores: wgmma, which reads through the asynchronous proxy, sees them all.
DEVICE void stores_seen_by_wgmma() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncthreads();
}

// start: of the first row; group_bytes: from one group of eight rows to the next (SBO); base_offset: bits 49 to 51.
DEVICE uint64_t descriptor(uint32_t start, uint32_t group_bytes, int base_offset) {
    constexpr uint64_t k128B = uint64_t{1} << 62, kLeading = uint64_t{1} << 16;  // the leading offset is ignored
    return k128B | kLeading | uint64_t((start & 0x3FFFF) >> 4) | uint64_t(group_bytes >> 4) << 32 |
           uint64_t(base_offset) << 49;
}

// d = a * b; kTransposed: b's rows run along k (MN-major), else along n (K-major).
template <int kTransposed>
DEVICE void multiply(float (&d)[32], const uint32_t (&a)[4], uint64_t b) {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
    asm volatile(
        "{\n"
        ".reg .pred accumulate;\n"
        "setp.ne.b32 accumulate, 0, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, "
        "%23, %24, %25, %26, %27, %28, %29, %30, %31}, {%32, %33, %34, %35}, %36, accumulate, 1, 1, %37;\n"
        "wgmma.commit_group.sync.aligned;\n"
        "wgmma.wait_group.sync.aligned 0;\n"
        "}"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]),
          "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]),
          "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]),
          "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(kTransposed)
        : "memory");
}

// Bytes from one group of eight pixels to the next.
constexpr int kDistances[] = {
    1024,  // pixels that follow each other
    1280,  // a row of a halo of 10 pixels: conv3x3_halo and bottleneck_inference at stride 1
    2048,  // of 16 pixels
    4352,  // two rows of 17 pixels: bottleneck_inference at stride 2
    4608,  // two rows of 18 pixels: conv3x3_halo at stride 2
};
// Rows that a tap may start at: the last tap of a stride-2 halo starts at row 37 of it, of a 10-pixel one at row 22.
constexpr int kStarts = 40;
static_assert(kStarts - 1 + 7 * 4608 / kRowBytes + 8 <= kRows, "what 64 pixels read lies in the tile");

// Asks for every start and every distance of groups; `right(start, group_bytes, base_offset)` counts what was read as
// expected, of `all`.  Starts at the same row of the 1024-byte pattern are counted together.  The aligned arrangement
// is the control: an error there is this test's own.
template <class Right>
[[noreturn]] void ask(Right right, int all) {
    std::string detail;
    bool plain = true, any_start = true, repaired = true;
    for (int group_bytes : kDistances)
        for (int row = 0; row < 8; ++row) {
            int zero_offset = 0, own_offset = 0;
            for (int start = row; start < kStarts; start += 8) {
                int zero = right(start, group_bytes, 0), own = row ? right(start, group_bytes, row) : zero;
                (group_bytes == 1024 && start == 0 ? plain : any_start) &= zero == all;
                repaired &= zero == all || own == all;
                zero_offset += zero, own_offset += own;
            }
            char line[64];
            std::snprintf(line, sizeof(line), "; %d B, row %d: %d, %d", group_bytes, row, zero_offset, own_offset);
            detail += line;
        }
    if (!plain) finish("error", "even the aligned tile was misread%s", detail.c_str());
    const char* repair = any_start  ? "base offset 0 reads every row"
                         : repaired ? "the base offset repairs it"
                                    : "no base offset repairs it";
    finish(any_start ? "yes" : "no",
           "%s; right of %d with base offset 0, and with the row as base offset, by distance of groups and row of the "
           "pattern that it starts at%s",
           repair, kStarts / 8 * all, detail.c_str());
}
