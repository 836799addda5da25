// Does TMA's 128-byte swizzle take its bits from the shared address itself, where a box is aligned to 128 but not to
// 1024 bytes?
//
// Decides where conv3x3_halo and bottleneck_inference find what they load: the rows of a halo (boxes of 8 to 16 pixels
// of 128 bytes) and the slices of channels follow each other without gaps, so most boxes begin inside the 1024-byte
// pattern; the prologue, the residual and wgmma's descriptors then look for chunk c of the pixel at address a at
// c ^ (a / 128 % 8).  bottleneck_inference also stores its output from such places.  csrc/emulation answers "yes"
// (tensor_map.hpp: the swizzle of the absolute address, for loads and for stores), so with "no" those kernels are wrong
// on the device although their tests pass.  Where the detail says "of the box's own rows", the pattern begins with the
// box: readers must count rows from there, and boxes that one descriptor reads must begin at multiples of 1024 bytes.
#include <utility>

#include "micro.cuh"

constexpr int kRowBytes = 128, kChannels = 64, kChunk = 8;  // elements of 16 bytes
constexpr int kBoxRows = 10, kPattern = 8;                  // a row of a halo; the rows that the pattern repeats after
constexpr int kElements = kBoxRows * kChannels;
constexpr int kShared = (kBoxRows + kPattern - 1) * kRowBytes + 1024;  // with room to find a multiple of 1024

enum class Pattern { kAddress, kBox, kNone };  // whose rows the swizzle counts: shared memory's, or the box's own

// The place of an element, in elements from the multiple of 1024 bytes on; the box begins at row `first`.
int place(Pattern pattern, int first, int element) {
    int row = element / kChannels, channel = element % kChannels;
    int turn = (pattern == Pattern::kAddress ? first + row : row) % kPattern;
    return (first + row) * kChannels + (channel / kChunk ^ turn) * kChunk + channel % kChunk;
}

DEVICE uint16_t* aligned(uint8_t* memory) {
    return reinterpret_cast<uint16_t*>(memory + (1024 - shared_address(memory) % 1024) % 1024);
}

// What lies where the box should lie, in the order of addresses, after a load to row `first`.
__global__ void load_box(const __grid_constant__ CUtensorMap map, int first, uint16_t* loaded) {
    __shared__ __align__(128) uint8_t memory[kShared];
    __shared__ uint64_t barrier;
    uint16_t* box = aligned(memory) + first * kChannels;
    if (threadIdx.x == 0) mbarrier_init(shared_address(&barrier));
    __syncthreads();
    if (threadIdx.x == 0) {
        mbarrier_expect(shared_address(&barrier), kBoxRows * kRowBytes);
        load_2d(shared_address(box), map, shared_address(&barrier), 0, 0);
    }
    mbarrier_wait(shared_address(&barrier), 0);
    for (int i = threadIdx.x; i < kElements; i += blockDim.x) loaded[i] = box[i];
}

// Stores a box from row `first`, each of whose elements holds its own place.
__global__ void store_box(const __grid_constant__ CUtensorMap map, int first) {
    __shared__ __align__(128) uint8_t memory[kShared];
    uint16_t* box = aligned(memory) + first * kChannels;
    for (int i = threadIdx.x; i < kElements; i += blockDim.x) box[i] = uint16_t(i);
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncthreads();
    if (threadIdx.x == 0) {
        asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %2}], [%1];" ::"l"(&map),
                     "r"(shared_address(box)), "r"(0)
                     : "memory");
        asm volatile("cp.async.bulk.commit_group;\n cp.async.bulk.wait_group 0;" ::: "memory");
    }
}

// What the boxes of one direction show, by the row that they began at.
struct Observed {
    Pattern patterns[kPattern];
    std::string unknown;  // where the rows' first chunks lie, for boxes of neither pattern

    // is_at(element, place in the box): whether that element is there.
    template <class IsAt>
    void add(int first, IsAt is_at) {
        patterns[first] = Pattern::kNone;
        for (Pattern pattern : {Pattern::kBox, Pattern::kAddress}) {
            int right = 0;
            for (int element = 0; element < kElements; ++element)
                right += is_at(element, place(pattern, first, element) - first * kChannels);
            if (right == kElements) patterns[first] = pattern;
        }
        if (patterns[first] != Pattern::kNone) return;
        unknown += "; from row " + std::to_string(first) + " on, the rows' first chunks lie at chunks";
        for (int row = 0; row < kBoxRows; ++row) {
            int at = 0;
            while (at < kElements && !is_at(row * kChannels, at)) ++at;
            unknown += at < kElements ? " " + std::to_string(at / kChunk) : " ?";
        }
    }

    bool only(Pattern wanted) const {
        for (Pattern pattern : patterns)
            if (pattern != wanted) return false;
        return true;
    }

    // Rows that a box of the pattern began at: "0 1 2".
    std::string rows_of(Pattern wanted) const {
        std::string rows;
        for (int first = 0; first < kPattern; ++first)
            if (patterns[first] == wanted) rows += (rows.empty() ? "" : " ") + std::to_string(first);
        return rows.empty() ? "none" : rows;
    }

    std::string described() const {
        return "the swizzle is one of the address for boxes that begin at row " + rows_of(Pattern::kAddress) +
               ", of the box's own rows at " + rows_of(Pattern::kBox) + ", of neither at " + rows_of(Pattern::kNone) +
               unknown;
    }
};

int main() {
    require_hopper();
    static uint16_t numbers[kElements];
    for (int i = 0; i < kElements; ++i) numbers[i] = uint16_t(i);
    uint16_t *source = on_device(numbers, kElements), *target = on_device(numbers, kElements);
    auto* seen = answers<uint16_t>(kElements);
    CUtensorMap from, to;
    for (auto [map, memory] : {std::pair{&from, source}, std::pair{&to, target}})
        encoded_well(encode<2>(map, CU_TENSOR_MAP_DATA_TYPE_UINT16, memory, {kChannels, kBoxRows}, {kRowBytes},
                               {kChannels, kBoxRows}, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE, CU_TENSOR_MAP_SWIZZLE_128B));
    Observed loads, stores;
    for (int first = 0; first < kPattern; ++first) {
        load_box<<<1, 128>>>(from, first, seen);
        launched_well();
        loads.add(first, [=](int element, int at) { return seen[at] == element; });
        CHECK(cudaMemset(target, 0xFF, sizeof(numbers)));
        store_box<<<1, 128>>>(to, first);
        launched_well();
        CHECK(cudaMemcpy(seen, target, sizeof(numbers), cudaMemcpyDeviceToHost));
        stores.add(first, [=](int element, int at) { return seen[element] == at; });
    }
    std::string detail = "loads: " + loads.described() + "; stores: " + stores.described();
    // from row 0 on, both patterns are the same
    if (loads.patterns[0] != Pattern::kAddress || stores.patterns[0] != Pattern::kAddress)
        finish("error", "even the aligned box is not where it should be: %s", detail.c_str());
    finish(loads.only(Pattern::kAddress) && stores.only(Pattern::kAddress) ? "yes" : "no", "%s", detail.c_str());
}
