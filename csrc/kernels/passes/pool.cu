#include "kernels/passes/pool.cuh"
#include "kernels/passes/runs.h"

namespace launch {

using namespace kernels;

namespace {

constexpr int kMaxKernel = 16;  // a place in the window fits a byte

PoolWindow window_of(const Call& call, int64_t n, int64_t h, int64_t w, int64_t k, int64_t kernel, int64_t stride,
                     int64_t padding) {
    call.map("z", n, h, w, k);
    call.require(kernel >= 1 && kernel <= kMaxKernel && stride >= 1 && stride < kMaxElements && padding >= 0 &&
                     padding <= kernel / 2 && h + 2 * padding >= kernel && w + 2 * padding >= kernel,
                 "no window of " + std::to_string(kernel) + " with stride " + std::to_string(stride) + " and padding " +
                     std::to_string(padding));
    int64_t p = (h + 2 * padding - kernel) / stride + 1, q = (w + 2 * padding - kernel) / stride + 1;
    call.map("the pooled map", n, p, q, k);
    return {as_int(n), as_int(h), as_int(w), as_int(p), as_int(q), as_int(kernel), as_int(stride), as_int(padding)};
}

}  // namespace

void bn_relu_maxpool(Pointer z, Pointer scale, Pointer shift, Pointer y, Pointer argmax, int element_type, int64_t n,
                     int64_t h, int64_t w, int64_t k, int64_t kernel, int64_t stride, int64_t padding, Pointer stream) {
    Call call("bn_relu_maxpool", {n, h, w, k});
    PoolWindow window = window_of(call, n, h, w, k, kernel, stride, padding);
    int pixels = window.images * window.out_height * window.out_width;
    BnReluMaxpool parameters = {call.aligned<const uint16_t>("z", z),
                                call.aligned<const float>("scale", scale),
                                call.aligned<const float>("shift", shift),
                                call.aligned<uint16_t>("y", y),
                                call.aligned<uint8_t>("argmax", argmax),
                                tiles_of_batches(pixels, as_int(k), 1),
                                window};
    with_element_type(call, element_type, [&]<ElementType kType>() {
        auto function = kernel == 3 ? kernels::bn_relu_maxpool<kType, 3> : kernels::bn_relu_maxpool<kType, 0>;
        run<BnReluMaxpool>(call, function, parameters, parameters.tiles.blocks(), kThreads, 0, stream);
    });
}

void bn_relu_maxpool_backward(Pointer grad, Pointer argmax, Pointer z, Pointer scale, Pointer shift, Pointer mean,
                              Pointer g, Pointer partials, int element_type, int64_t n, int64_t h, int64_t w, int64_t k,
                              int64_t kernel, int64_t stride, int64_t padding, int64_t run_pixels, Pointer stream) {
    Call call("bn_relu_maxpool_backward", {n, h, w, k});
    PoolWindow window = window_of(call, n, h, w, k, kernel, stride, padding);
    BnReluMaxpoolBackward parameters = {call.aligned<const uint16_t>("grad", grad),
                                        call.aligned<const uint8_t>("argmax", argmax),
                                        call.aligned<const uint16_t>("z", z),
                                        call.aligned<const float>("scale", scale),
                                        call.aligned<const float>("shift", shift),
                                        call.aligned<const float>("mean", mean),
                                        call.aligned<uint16_t>("g", g),
                                        call.aligned<float>("partials", partials),
                                        runs_of_pixels(call, n * h * w, k, run_pixels),
                                        window};
    with_element_type(call, element_type, [&]<ElementType kType>() {
        run<BnReluMaxpoolBackward>(call, kernels::bn_relu_maxpool_backward<kType>, parameters,
                                   parameters.tiles.blocks(), kThreads, kSumBytes, stream);
    });
}

}  // namespace launch
