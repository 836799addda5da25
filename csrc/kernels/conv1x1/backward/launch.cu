#include <algorithm>

#include "kernels/conv1x1/backward/kernel.cuh"
#include "kernels/conv1x1/backward/launch.h"
#include "launch/hopper.h"

namespace launch {

using namespace conv1x1_backward;

namespace {

struct Tensors {
    const uint16_t *g, *z, *weight, *x, *skip, *skip_out;
    uint16_t* dx;
};

BackwardArguments make_problem(const Call& call, int64_t n, int64_t h, int64_t w, int64_t c, int64_t k) {
    call.map("x", n, h, w, c);
    call.map("g", n, h, w, k);
    call.require(c <= kMaxChannels && k <= kMaxFilters,
                 std::to_string(c) + " channels and " + std::to_string(k) + " filters are more than the " +
                     std::to_string(kMaxChannels) + " and " + std::to_string(kMaxFilters) +
                     " whose products a block can hold; call conv1x1_dgrad and conv1x1_wgrad");
    BackwardArguments arguments = {};
    arguments.tiles = make_tiles(as_int(n), as_int(h), as_int(w), 1);
    arguments.channels = as_int(c);
    arguments.filters = as_int(k);
    return arguments;
}

template <ElementType kType>
void run_kernel(const Call& call, const Tensors& tensors, const BackwardArguments& arguments, int rows,
                Pointer stream) {
    using V = BackwardVariant<kType>;
    MapShape gradient = map_shape(arguments.tiles, arguments.filters);
    MapShape input = map_shape(arguments.tiles, arguments.channels);
    auto map = [&](const char* what, const uint16_t* base, const uint16_t* otherwise, const MapShape& shape) {
        TensorMap made = tensor_map(call, what, base ? base : otherwise, shape, kType);
        count_loads(made);
        return made;
    };
    BackwardParameters parameters = {
        map("g", tensors.g, nullptr, gradient),
        map("z", tensors.z, tensors.g, gradient),
        tensor_map(call, "weight", tensors.weight, matrix_shape(arguments.filters, arguments.channels, kSliceChannels),
                   kType),
        map("x", tensors.x, nullptr, input),
        map("skip", tensors.skip, tensors.x, input),
        map("skip_out", tensors.skip_out, tensors.x, input),
        tensor_map(call, "dx", tensors.dx, input, kType),
        arguments};
    multiprocessors(call);  // refuses other GPUs
    auto kernel = conv1x1_backward_kernel<kType>;
    allow_shared_memory(call, kernel, V::kSharedBytes);
    run<BackwardParameters>(call, kernel, parameters, rows, kThreads, V::kSharedBytes, stream);
}

}  // namespace

void conv1x1_backward(Pointer g, Pointer z, Pointer a, Pointer b, Pointer c_, Pointer weight, Pointer x, bool rectified,
                      Pointer skip, Pointer skip_out, Pointer dx, Pointer partials, int64_t rows, int element_type,
                      int64_t n, int64_t h, int64_t w, int64_t c, int64_t k, Pointer stream) {
    Call call("conv1x1_backward", {n, h, w, c, k});
    BackwardArguments arguments = make_problem(call, n, h, w, c, k);
    call.require((b == 0) == (c_ == 0), "one of b and c is missing");
    call.require(z != 0 || b == 0, "z is missing, and there is a b to multiply it by");
    call.require(skip != 0 || skip_out == 0, "skip is missing, and there is a skip_out to mask it");
    call.rows("partials", rows, k * c);
    call.require(rows <= arguments.tiles.count(), "partials has " + std::to_string(rows) + " rows for " +
                                                      std::to_string(arguments.tiles.count()) +
                                                      " tiles; a block without a tile has nothing to leave");
    arguments.norm = {call.aligned<const float>("a", a), call.aligned_or_null<const float>("b", b),
                      call.aligned_or_null<const float>("c", c_)};
    arguments.rectified = rectified;
    arguments.has_skip = skip != 0;
    arguments.has_skip_out = skip_out != 0;
    arguments.partials = call.aligned<float>("partials", partials);
    Tensors tensors = {call.aligned<const uint16_t>("g", g),
                       call.aligned_or_null<const uint16_t>("z", z),
                       call.aligned<const uint16_t>("weight", weight),
                       call.aligned<const uint16_t>("x", x),
                       call.aligned_or_null<const uint16_t>("skip", skip),
                       call.aligned_or_null<const uint16_t>("skip_out", skip_out),
                       call.aligned<uint16_t>("dx", dx)};
    with_element_type(call, element_type,
                      [&]<ElementType kType>() { run_kernel<kType>(call, tensors, arguments, as_int(rows), stream); });
}

int64_t conv1x1_backward_rows(int64_t n, int64_t h, int64_t w, int64_t c, int64_t k) {
    Call call("conv1x1_backward_rows", {n, h, w, c, k});
    return std::min(multiprocessors(call), make_problem(call, n, h, w, c, k).tiles.count());
}

}  // namespace launch
