#include <algorithm>

#include "kernels/conv1x1/gram_finish/kernel.cuh"
#include "kernels/conv1x1/gram_finish/launch.h"
#include "launch/hopper.h"

namespace launch {

using namespace conv1x1_gram_finish;

namespace {

constexpr int kNarrowColumns = 64, kWideColumns = 128;  // of a block

struct Tensors {
    const uint16_t *t, *z, *quadratic;
    uint16_t* g;
};

Problem make_problem(const Call& call, int64_t n, int64_t h, int64_t w, int64_t c) {
    call.map("z", n, h, w, c);
    call.map("quadratic", 1, 2, c, c);
    return {make_tiles(as_int(n), as_int(h), as_int(w), 1), as_int(c)};
}

// (2, c, c) in boxes of both parts of 64 x 64.
MapShape quadratic_shape(int channels) {
    return {{channels, channels, kParts, 1}, {kSliceChannels, kSliceChannels, kParts, 1}, {1, 1, 1, 1}, false};
}

template <ElementType kType, int kColumns>
void run_kernel(const Call& call, const Tensors& tensors, const Arguments& arguments, int rows, Pointer stream) {
    using V = Variant<kType, kColumns>;
    const Problem& p = arguments.problem;
    MapShape map = map_shape(p.tiles, p.channels);
    Parameters parameters = {tensor_map(call, "z", tensors.z, map, kType), tensor_map(call, "t", tensors.t, map, kType),
                             tensor_map(call, "quadratic", tensors.quadratic, quadratic_shape(p.channels), kType),
                             tensor_map(call, "g", tensors.g, map, kType), arguments};
    count_loads(parameters.z);
    count_loads(parameters.t);
    auto kernel = conv1x1_gram_finish_kernel<kType, kColumns>;
    allow_shared_memory(call, kernel, V::kSharedBytes);
    run<Parameters>(call, kernel, parameters, rows * V::column_blocks(p), kThreads, V::kSharedBytes, stream);
}

int column_blocks(const Problem& p) {
    int columns = p.channels > kNarrowColumns ? kWideColumns : kNarrowColumns;
    return (p.channels + columns - 1) / columns;
}

}  // namespace

void conv1x1_gram_finish(Pointer t, Pointer z, Pointer in_scale, Pointer in_shift, Pointer center, Pointer quadratic,
                         Pointer constant, Pointer below_mean, Pointer g, Pointer partials, int64_t rows,
                         int element_type, int64_t n, int64_t h, int64_t w, int64_t c, Pointer stream) {
    Call call("conv1x1_gram_finish", {n, h, w, c});
    Arguments arguments = {};
    arguments.problem = make_problem(call, n, h, w, c);
    int pairs = arguments.problem.tile_pairs();
    call.require((in_scale == 0) == (in_shift == 0), "one of in_scale and in_shift is missing");
    call.rows("partials", rows, 2 * c);
    call.require(rows <= pairs, "partials has " + std::to_string(rows) + " rows for " + std::to_string(pairs) +
                                    " pairs of tiles; a share without one has nothing to leave");
    arguments.prologue = {call.aligned_or_null<const float>("in_scale", in_scale),
                          call.aligned_or_null<const float>("in_shift", in_shift)};
    arguments.center = call.aligned<const float>("center", center);
    arguments.constant = call.aligned<const float>("constant", constant);
    arguments.below_mean = call.aligned<const float>("below_mean", below_mean);
    arguments.partials = call.aligned<float>("partials", partials);
    Tensors tensors = {call.aligned<const uint16_t>("t", t), call.aligned<const uint16_t>("z", z),
                       call.aligned<const uint16_t>("quadratic", quadratic), call.aligned<uint16_t>("g", g)};
    with_element_type(call, element_type, [&]<ElementType kType>() {
        if (c > kNarrowColumns)
            run_kernel<kType, kWideColumns>(call, tensors, arguments, as_int(rows), stream);
        else
            run_kernel<kType, kNarrowColumns>(call, tensors, arguments, as_int(rows), stream);
    });
}

int64_t conv1x1_gram_finish_rows(int64_t n, int64_t h, int64_t w, int64_t c) {
    Call call("conv1x1_gram_finish_rows", {n, h, w, c});
    Problem problem = make_problem(call, n, h, w, c);
    return std::clamp(multiprocessors(call) / column_blocks(problem), 1, problem.tile_pairs());
}

}  // namespace launch
