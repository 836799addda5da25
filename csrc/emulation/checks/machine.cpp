// The emulator against plain loops: tensor core operands, warp matrices, TMA boxes. And every rule that it holds
// kernels to, broken once: csrc/emulation/README.md lists them. Run by tests/kernels/test_emulation.py.
#include <cstdio>

#include "device/primitives.cuh"

namespace {

constexpr int kM = 64, kN = 128, kK = 64;

// Small integers: products and sums are exact in every format.
struct Matrix {
    int rows, columns;
    std::vector<int> values;
    Matrix(int rows, int columns, int seed) : rows(rows), columns(columns), values(rows * columns) {
        std::mt19937 random(seed);
        for (int& value : values) value = int(random() % 9) - 4;
    }
    int at(int row, int column) const { return values[row * columns + column]; }
};

uint16_t encode(ElementType type, int value) {
    return type == ElementType::kBf16 ? emu::bf16_from_float(float(value)) : emu::f16_from_double(value);
}

// [mn][k] for K-major, [k][mn] for MN-major.
std::vector<uint16_t> global_copy(const Matrix& matrix, ElementType type, Major major) {
    std::vector<uint16_t> copy;
    int outer = major == Major::kK ? matrix.rows : matrix.columns;
    int inner = major == Major::kK ? matrix.columns : matrix.rows;
    for (int o = 0; o < outer; ++o)
        for (int i = 0; i < inner; ++i)
            copy.push_back(encode(type, major == Major::kK ? matrix.at(o, i) : matrix.at(i, o)));
    return copy;
}

TensorMap plane(std::vector<uint16_t>& data, int inner, int outer, int box_inner, int box_outer, Swizzle swizzle) {
    TensorMap map;
    map.base = data.data();
    map.size = {inner, outer, 1, 1, 1};
    map.stride_bytes = {2, 2 * inner, 2 * inner * outer, 2 * inner * outer, 0};
    map.box = {box_inner, box_outer, 1, 1, 1};
    map.swizzle = swizzle;
    emu::validate(map);
    return map;
}

// One operand in shared memory: boxes one swizzle width wide, side by side along the contiguous dimension.
struct Operand {
    Major major;
    Swizzle swizzle;
    int mn;
    int width() const { return int(swizzle_width(swizzle)) / 2; }
    int inner() const { return major == Major::kK ? kK : mn; }
    int outer() const { return major == Major::kK ? mn : kK; }
    uint32_t box_bytes() const { return outer() * swizzle_width(swizzle); }
    uint32_t bytes() const { return box_bytes() * (inner() / width()); }
    TensorMap map(std::vector<uint16_t>& data) const {
        return plane(data, inner(), outer(), width(), outer(), swizzle);
    }
    void load(SmemAddress to, const TensorMap& map, SmemAddress barrier) const {
        for (int box = 0; box < inner() / width(); ++box)
            tma_load_4d(to + box * box_bytes(), map, barrier, box * width(), 0, 0, 0);
    }
    // Of the k16 slice that starts at k.
    uint64_t descriptor(SmemAddress start, int k) const {
        uint32_t atom = 8 * swizzle_width(swizzle);
        if (major == Major::kMN && swizzle == Swizzle::kNone)
            return matrix_descriptor(start + k / 8 * atom, atom, box_bytes(), swizzle);
        if (major == Major::kMN) return matrix_descriptor(start + k / 8 * atom, box_bytes(), atom, swizzle);
        return matrix_descriptor(start + k / width() * box_bytes() + k % width() * 2, box_bytes(), atom, swizzle);
    }
};

void expect_product(const std::vector<float>& d, const Matrix& a, const Matrix& b, int first_row_of_b = 0) {
    for (int m = 0; m < kM; ++m)
        for (int n = 0; n < kN; ++n) {
            int expected = 0;
            for (int k = 0; k < kK; ++k) expected += a.at(m, k) * b.at(first_row_of_b + n, k);
            if (d[m * kN + n] != float(expected)) emu::fail("element (%d, %d) is not %d", m, n, expected);
        }
}

void keep(std::vector<float>& result, const float (&d)[kN / 2]) {
    for (int i = 0; i < kN / 2; ++i)
        result[emu::accumulator_row(thread_index(), i) * kN + emu::accumulator_column(thread_index(), i)] = d[i];
}

// One warpgroup with `bytes` of shared memory and an mbarrier behind them that expects one TMA load of as many bytes.
template <class Body>
void run(uint32_t bytes, uint32_t expected_bytes, Body body) {
    emu::launch({1, 128, bytes + 16}, [&] {
        SmemAddress barrier = bytes;
        if (thread_index() == 0) {
            mbarrier_init(barrier, 1);
            mbarrier_init_fence();
        }
        cta_sync();
        if (thread_index() == 0 && expected_bytes) mbarrier_arrive_expect_tx(barrier, expected_bytes);
        body(barrier);
    });
}

template <ElementType kType, Major kAMajor, Major kBMajor>
void check_ss() {
    Matrix a(kM, kK, 1), b(kN, kK, 2);
    auto a_data = global_copy(a, kType, kAMajor), b_data = global_copy(b, kType, kBMajor);
    for (Swizzle swizzle : {Swizzle::k128B, Swizzle::k64B, Swizzle::k32B, Swizzle::kNone}) {
        Operand left{kAMajor, swizzle, kM}, right{kBMajor, swizzle, kN};
        TensorMap a_map = left.map(a_data), b_map = right.map(b_data);
        std::vector<float> result(kM * kN);
        run(left.bytes() + right.bytes(), left.bytes() + right.bytes(), [&](SmemAddress barrier) {
            if (thread_index() == 0) {
                left.load(0, a_map, barrier);
                right.load(left.bytes(), b_map, barrier);
            }
            mbarrier_wait(barrier, 0);
            float d[kN / 2];
            wgmma_fence();
            for (int k = 0; k < kK; k += 16)
                wgmma_ss<kType, kN, kAMajor, kBMajor>(d, left.descriptor(0, k), right.descriptor(left.bytes(), k),
                                                      k > 0);
            wgmma_commit();
            wgmma_wait<0>();
            keep(result, d);
        });
        expect_product(result, a, b);
    }
}

// A from registers; B starts `shift` rows into a tile whose swizzle pattern starts at a 1024-byte boundary.
void check_shifted() {
    Matrix a(kM, kK, 3), b(kN + 8, kK, 4);
    Operand tile{Major::kK, Swizzle::k128B, b.rows};
    auto data = global_copy(b, ElementType::kBf16, Major::kK);
    TensorMap map = tile.map(data);
    for (int shift = 0; shift < 8; ++shift) {
        std::vector<float> result(kM * kN);
        run(tile.bytes(), tile.bytes(), [&](SmemAddress barrier) {
            if (thread_index() == 0) tile.load(0, map, barrier);
            mbarrier_wait(barrier, 0);
            float d[kN / 2];
            wgmma_fence();
            for (int k = 0; k < kK; k += 16) {
                uint32_t fragment[4];
                for (int i = 0; i < 4; ++i) {
                    int row = emu::fragment_row(thread_index(), i), column = k + emu::fragment_k(thread_index(), i);
                    fragment[i] = pack_bf16x2(a.at(row, column), a.at(row, column + 1));
                }
                wgmma_rs<ElementType::kBf16, kN, Major::kK>(d, fragment, advanced(tile.descriptor(0, k), 128 * shift),
                                                            k > 0);
            }
            wgmma_commit();
            wgmma_wait<0>();
            keep(result, d);
        });
        expect_product(result, a, b, shift);
    }
}

// ldmatrix, straight and transposed, stmatrix, mma.
void check_warp_matrices() {
    Matrix a(16, 16, 5), b(8, 16, 6);
    constexpr auto kType = ElementType::kF16;
    emu::launch({1, 32, 16 * 32 * 2}, [&] {
        int lane = lane_index();
        SmemAddress copy = 16 * 32, row = (lane % 8 + lane / 8 % 2 * 8) * 32 + lane / 16 * 16;
        for (int i = lane; i < 16 * 16; i += 32) store_shared(i * 2, encode(kType, a.at(i / 16, i % 16)));
        warp_sync();
        uint32_t left[4], transposed[4], right[2];
        load_matrix_x4(row, left);
        load_matrix_x4_trans(row, transposed);
        store_matrix_x4_trans(copy + row, transposed[0], transposed[1], transposed[2], transposed[3]);
        warp_sync();
        for (int i = lane; i < 16 * 16; i += 32)
            if (load_shared<uint16_t>(copy + 2 * i) != encode(kType, a.at(i / 16, i % 16)))
                emu::fail("ldmatrix.trans and stmatrix.trans: element %d", i);
        for (int i = 0; i < 2; ++i) {
            int k = lane % 4 * 2 + 8 * i;
            right[i] = encode(kType, b.at(lane / 4, k)) | encode(kType, b.at(lane / 4, k + 1)) << 16;
        }
        float d[4] = {};
        mma_m16n8k16<kType>(d, left, right);
        for (int i = 0; i < 4; ++i) {
            int m = lane / 4 + i / 2 * 8, n = lane % 4 * 2 + i % 2, expected = 0;
            for (int k = 0; k < 16; ++k) expected += a.at(m, k) * b.at(n, k);
            if (d[i] != float(expected)) emu::fail("mma: element (%d, %d) is not %d", m, n, expected);
        }
    });
}

// A box with element stride 2 that sticks out of the tensor on three sides, and what it counts as loaded.
void check_tma_box() {
    Matrix image(7, 8, 7);
    auto data = global_copy(image, ElementType::kBf16, Major::kK);
    TensorMap map = plane(data, 8, 7, 8, 9, Swizzle::kNone);
    map.element_stride = {1, 2, 1, 1, 1};
    std::atomic<int64_t> loaded = 0;
    map.loaded_bytes = &loaded;
    run(1024, map.box_bytes(), [&](SmemAddress barrier) {
        if (thread_index() == 0) tma_load_4d(0, map, barrier, -1, -1, 0, 0);
        mbarrier_wait(barrier, 0);
        for (int i = thread_index(); i < 5 * 8; i += 128) {
            int row = -1 + i / 8 * 2, column = -1 + i % 8;
            bool inside = row >= 0 && row < 7 && column >= 0;
            if (load_shared<uint16_t>(2 * i) != (inside ? encode(ElementType::kBf16, image.at(row, column)) : 0))
                emu::fail("TMA box: row %d, column %d", row, column);
        }
    });
    if (loaded != 3 * 7 * 2) emu::fail("%d bytes counted", int(loaded));
}

// ---- one broken rule each ----

const char* const kRules[] = {"bounds",        "alignment",      "uninitialised", "race",
                              "in flight",     "unfenced",       "wgmma.fence",   "wgmma pending",
                              "mbarrier init", "mbarrier fence", "deadlock",      "expect_tx",
                              "store pending", "registers",      "named barrier", "warp_uniform"};

void multiply_zeros(bool fence) {
    float d[32];
    const uint32_t a[4] = {};
    if (fence) wgmma_fence();
    wgmma_rs<ElementType::kBf16, 64, Major::kK>(d, a, matrix_descriptor(0, 16, 1024, Swizzle::k128B), false);
    wgmma_commit();
}

void break_rule(const std::string& rule) {
    std::vector<uint16_t> data(64 * 64);
    TensorMap map = plane(data, 64, 64, 64, 64, Swizzle::k128B);
    int thread = thread_index();
    auto fill = [&] {
        for (SmemAddress a = thread * 16; a < 8192; a += 128 * 16) store_shared(a, Chunk{});
    };
    SmemAddress barrier = 8192;
    if (rule == "bounds" && thread == 0) store_shared(8192 + 4096, 1u);
    if (rule == "alignment" && thread == 0) store_shared(2, 1u);
    if (rule == "uninitialised" && thread == 0) load_shared<uint32_t>(64);
    if (rule == "race" && thread % 32 == 0) store_shared(0, 1u);
    if (rule == "in flight" && thread == 0) {
        tma_load_4d(0, map, barrier, 0, 0, 0, 0);
        load_shared<uint32_t>(64);
    }
    if (rule == "unfenced" || rule == "wgmma.fence" || rule == "wgmma pending") {
        fill();
        if (rule != "unfenced") fence_proxy_async();
        cta_sync();
        multiply_zeros(rule != "wgmma.fence");
        if (rule == "wgmma pending") {
            cta_sync();
            store_shared(thread * 16, Chunk{});
        }
        wgmma_wait<0>();
    }
    if (rule == "mbarrier init" && thread == 0) mbarrier_arrive(8192 + 8);
    if (rule == "mbarrier fence" && thread == 0) {
        mbarrier_init(8192 + 8, 1);
        tma_load_4d(0, map, 8192 + 8, 0, 0, 0, 0);
    }
    if (rule == "deadlock") mbarrier_wait(barrier, 0);
    if (rule == "expect_tx") {
        if (thread == 0) mbarrier_arrive_expect_tx(barrier, 4096), tma_load_4d(0, map, barrier, 0, 0, 0, 0);
        mbarrier_wait(barrier, 0);
    }
    if (rule == "store pending" && thread == 0) {
        for (SmemAddress a = 0; a < 8192; a += 16) store_shared(a, Chunk{});
        fence_proxy_async();
        tma_store_4d(map, 0, 0, 0, 0, 0);
        tma_store_commit();
    }
    if (rule == "registers") register_budget_increase<250>();
    if (rule == "named barrier") named_barrier_sync(1, thread < 64 ? 64 : 96);
    if (rule == "warp_uniform") warp_uniform(thread);
}

template <class Body>
const char* message_of(Body body) {
    static thread_local std::string message;
    try {
        body();
        return nullptr;
    } catch (const std::exception& error) {
        message = error.what();
        return message.c_str();
    }
}

}  // namespace

extern "C" const char* check_arithmetic(const char* name) {
    using enum Major;
    using enum ElementType;
    return message_of([&] {
        std::string check = name;
        if (check == "wgmma bf16, A and B K-major") return check_ss<kBf16, Major::kK, Major::kK>();
        if (check == "wgmma bf16, A M-major") return check_ss<kBf16, kMN, Major::kK>();
        if (check == "wgmma bf16, B N-major") return check_ss<kBf16, Major::kK, kMN>();
        if (check == "wgmma f16, A M-major, B N-major") return check_ss<kF16, kMN, kMN>();
        if (check == "wgmma, B starts inside the swizzle pattern") return check_shifted();
        if (check == "warp matrices") return check_warp_matrices();
        if (check == "TMA box") return check_tma_box();
        emu::fail("there is no check %s", name);
    });
}

// What the emulator says of a kernel that breaks this rule; null where it says nothing.
extern "C" const char* check_rule(const char* name) {
    return message_of([&] {
        if (std::find(std::begin(kRules), std::end(kRules), std::string(name)) == std::end(kRules)) return;
        run(8192, 0, [&](SmemAddress) { break_rule(name); });
    });
}
