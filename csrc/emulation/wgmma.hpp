// The warpgroup's tensor core: descriptors, operand and accumulator layouts, and the asynchronous pipeline.
#pragma once
#include <array>
#include <deque>
#include <map>
#include <vector>

#include "device/swizzle.cuh"
#include "device/wgmma_types.cuh"
#include "emulation/numeric.hpp"
#include "emulation/shared_memory.hpp"

namespace emu {

constexpr int kWgmmaM = 64, kWgmmaK = 16, kMaxWgmmaN = 256;

struct WgmmaShape {
    int n;
    ElementType type;
    bool a_in_registers;
    Major a_major, b_major;
    bool operator==(const WgmmaShape&) const = default;
};

struct WgmmaOperands {  // of one thread
    float* d;
    std::array<uint32_t, 4> a_registers;
    uint64_t a_descriptor, b_descriptor;
    bool accumulate;
};

// The 64-bit shared-memory matrix descriptor, as the hardware reads it.
struct MatrixDescriptor {
    uint32_t start, leading_bytes, stride_bytes, base_offset;
    Swizzle swizzle;

    explicit MatrixDescriptor(uint64_t bits)
        : start(field(bits, 0, 14) << 4),
          leading_bytes(field(bits, 16, 14) << 4),
          stride_bytes(field(bits, 32, 14) << 4),
          base_offset(field(bits, 49, 3)),
          swizzle(static_cast<Swizzle>(field(bits, 62, 2))) {}

    // Shared address of the 16-bit element (mn, k). Both layouts are rows of one swizzle width, eight to an atom.
    uint32_t address(Major major, uint32_t mn, uint32_t k) const {
        uint32_t width = swizzle_width(swizzle) / 2;  // in elements
        uint32_t contiguous = major == Major::kK ? k : mn;
        uint32_t row = major == Major::kK ? mn : k;
        uint32_t across = leading_bytes, along = stride_bytes;
        if (swizzle == Swizzle::kNone && major == Major::kMN) std::swap(across, along);
        uint32_t logical =
            start + contiguous % width * 2 + contiguous / width * across + row % 8 * width * 2 + row / 8 * along;
        return swizzled(swizzle, logical, base_offset);
    }

  private:
    static uint32_t field(uint64_t bits, int low, int width) { return bits >> low & ((1u << width) - 1); }
};

// Row and column of accumulator register i of a thread.
inline int accumulator_row(int thread, int i) { return thread / 32 * 16 + thread % 32 / 4 + i / 2 % 2 * 8; }
inline int accumulator_column(int thread, int i) { return i / 4 * 8 + thread % 4 * 2 + i % 2; }
// Row and first k of the pair in A register i of a thread.
inline int fragment_row(int thread, int i) { return thread / 32 * 16 + thread % 32 / 4 + i % 2 * 8; }
inline int fragment_k(int thread, int i) { return thread % 4 * 2 + i / 2 * 8; }

struct Wgmma {
    WgmmaShape shape;
    std::array<WgmmaOperands, 128> by_thread;
    int issued = 0;
    std::vector<uint32_t> lines;  // shared memory it reads
};

class Warpgroup {
  public:
    std::array<int, 128> waits_entered{};
    int waiting = 0;
    int waits_completed = 0;

    // Returns the instruction once all 128 threads have issued it.
    Wgmma* issue(int thread, const WgmmaShape& shape, const WgmmaOperands& operands) {
        size_t position = issued_[thread]++ - retired_;
        if (position == ops_.size()) ops_.push_back({shape, {}, 0, {}});
        Wgmma& op = ops_[position];
        const WgmmaOperands& first = op.issued ? op.by_thread[first_thread_] : operands;
        if (!(op.shape == shape) || first.b_descriptor != operands.b_descriptor ||
            first.a_descriptor != operands.a_descriptor || first.accumulate != operands.accumulate)
            fail("wgmma operands differ between the threads of a warpgroup");
        if (op.issued == 0) first_thread_ = thread;
        op.by_thread[thread] = operands;
        return ++op.issued == 128 ? &op : nullptr;
    }

    void commit(int thread) {
        if (thread == 0) group_ends_.push_back(issued_[0]);
    }

    // read(line, what) checks one 16-byte line of shared memory and returns its bytes.
    template <class Read>
    void execute(Wgmma& op, Read read) {
        const WgmmaOperands& common = op.by_thread[0];
        std::vector<float>& d = accumulator(op);
        std::vector<float> a(kWgmmaM * kWgmmaK), b(kWgmmaK * op.shape.n);
        if (op.shape.a_in_registers)
            load_fragment(op, a);
        else
            load_matrix(op, common.a_descriptor, op.shape.a_major, kWgmmaM, read,
                        [&](int m, int k) -> float& { return a[m * kWgmmaK + k]; });
        load_matrix(op, common.b_descriptor, op.shape.b_major, op.shape.n, read,
                    [&](int n, int k) -> float& { return b[k * op.shape.n + n]; });
        if (!common.accumulate) std::fill(d.begin(), d.end(), 0.0f);
        multiply_add(a.data(), b.data(), d.data(), op.shape.n);
    }

    // Shows the results of all but the newest groups to the registers; returns the lines no longer read.
    std::vector<uint32_t> retire(int groups_in_flight) {
        size_t end = group_ends_.size() > size_t(groups_in_flight)
                         ? group_ends_[group_ends_.size() - 1 - groups_in_flight]
                         : retired_;
        std::vector<uint32_t> lines;
        for (; retired_ < end; ++retired_) {
            Wgmma& op = ops_.front();
            if (op.issued != 128) fail("wgmma issued by %d of 128 threads", op.issued);
            lines.insert(lines.end(), op.lines.begin(), op.lines.end());
            if (!used_after_front(op.by_thread[0].d)) publish(op);
            ops_.pop_front();
        }
        while (!group_ends_.empty() && group_ends_.front() <= retired_) group_ends_.pop_front();
        return lines;
    }

  private:
    // The accumulator lives here from the first wgmma on; the registers hold NaN until the wait.
    std::vector<float>& accumulator(Wgmma& op) {
        auto [found, is_new] = accumulators_.try_emplace(op.by_thread[0].d, kWgmmaM * op.shape.n);
        if (is_new)
            for_each_register(op, [&](float& element, float& reg) {
                element = reg;
                reg = std::bit_cast<float>(0xFFFFFFFFu);
            });
        return found->second;
    }

    void publish(Wgmma& op) {
        for_each_register(op, [](float& element, float& reg) { reg = element; });
        accumulators_.erase(op.by_thread[0].d);
    }

    bool used_after_front(const float* d) const {
        for (size_t i = 1; i < ops_.size(); ++i)
            if (ops_[i].by_thread[0].d == d) return true;
        return false;
    }

    template <class Visit>
    void for_each_register(Wgmma& op, Visit visit) {
        std::vector<float>& d = accumulators_.at(op.by_thread[0].d);
        for (int thread = 0; thread < 128; ++thread)
            for (int i = 0; i < op.shape.n / 2; ++i)
                visit(d[accumulator_row(thread, i) * op.shape.n + accumulator_column(thread, i)],
                      op.by_thread[thread].d[i]);
    }

    static void load_fragment(const Wgmma& op, std::vector<float>& a) {
        for (int thread = 0; thread < 128; ++thread)
            for (int i = 0; i < 4; ++i)
                for (int half = 0; half < 2; ++half)
                    a[fragment_row(thread, i) * kWgmmaK + fragment_k(thread, i) + half] =
                        to_float(op.shape.type, uint16_t(op.by_thread[thread].a_registers[i] >> 16 * half));
    }

    // Eight elements along the contiguous dimension share one 16-byte line.
    template <class Read, class Element>
    static void load_matrix(Wgmma& op, uint64_t bits, Major major, int extent, Read read, Element element) {
        MatrixDescriptor descriptor(bits);
        int contiguous = major == Major::kK ? kWgmmaK : extent, rows = major == Major::kK ? extent : kWgmmaK;
        for (int row = 0; row < rows; ++row)
            for (int chunk = 0; chunk < contiguous; chunk += 8) {
                uint32_t line =
                    major == Major::kK ? descriptor.address(major, row, chunk) : descriptor.address(major, chunk, row);
                const uint8_t* bytes = read(line, "wgmma read");
                op.lines.push_back(line);
                for (int i = 0; i < 8; ++i) {
                    uint16_t value;
                    std::memcpy(&value, bytes + 2 * i, sizeof value);
                    (major == Major::kK ? element(row, chunk + i) : element(chunk + i, row)) =
                        to_float(op.shape.type, value);
                }
            }
    }

    static void multiply_add(const float* __restrict a, const float* __restrict b, float* __restrict d, int n) {
        for (int m = 0; m < kWgmmaM; ++m)
            for (int k = 0; k < kWgmmaK; ++k) {
                float left = a[m * kWgmmaK + k];
                for (int column = 0; column < n; ++column) d[m * n + column] += left * b[k * n + column];
            }
    }

    std::array<size_t, 128> issued_{};
    size_t retired_ = 0;
    int first_thread_ = 0;
    std::deque<Wgmma> ops_;
    std::deque<size_t> group_ends_;
    std::map<float*, std::vector<float>> accumulators_;
};

}  // namespace emu
