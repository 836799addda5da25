#include "kernels/passes/add_act.cuh"
#include "kernels/passes/runs.h"

namespace launch {

using namespace kernels;

void bn_add_act(Pointer z, Pointer scale, Pointer shift, Pointer residual, Pointer y, int element_type, int64_t n,
                int64_t h, int64_t w, int64_t k, int64_t residual_h, int64_t residual_w, int64_t residual_c,
                int64_t residual_stride, bool relu, Pointer stream) {
    Call call("bn_add_act", {n, h, w, k});
    call.map("z", n, h, w, k);
    bool option_a = residual != 0 && (residual_c != k || residual_stride != 1);
    if (residual != 0) {
        call.map("residual", n, residual_h, residual_w, residual_c);
        call.require(residual_stride > 0 && (residual_h - 1) / residual_stride + 1 == h &&
                         (residual_w - 1) / residual_stride + 1 == w && residual_c <= k,
                     "the residual does not fit it");
        call.require((k - residual_c) % 16 == 0, "option A pads " + std::to_string(k - residual_c) +
                                                     " channels, and the kernel takes multiples of 16");
    }
    BnAddAct p = {call.aligned<const uint16_t>("z", z),
                  call.aligned<const float>("scale", scale),
                  call.aligned<const float>("shift", shift),
                  call.aligned_or_null<const uint16_t>("residual", residual),
                  call.aligned<uint16_t>("y", y),
                  tiles_of_batches(as_int(n * h * w), as_int(k), kAddBatch),
                  as_int(h),
                  as_int(w),
                  as_int(residual_h),
                  as_int(residual_w),
                  as_int(residual_c),
                  as_int(residual_stride),
                  relu};
    with_element_type(call, element_type, [&]<ElementType kType>() {
        auto kernel = residual == 0 ? kernels::bn_add_act<kType, Residual::kNone>
                      : option_a    ? kernels::bn_add_act<kType, Residual::kOptionA>
                                    : kernels::bn_add_act<kType, Residual::kSame>;
        run<BnAddAct>(call, kernel, p, p.tiles.blocks(), kThreads, 0, stream);
    });
}

void bn_act_backward(Pointer grad, Pointer out, Pointer z, Pointer mean, Pointer g, Pointer partials, int element_type,
                     int64_t n, int64_t h, int64_t w, int64_t k, int64_t run_pixels, Pointer stream) {
    Call call("bn_act_backward", {n, h, w, k});
    call.map("z", n, h, w, k);
    BnActBackward p = {call.aligned<const uint16_t>("grad", grad),
                       call.aligned_or_null<const uint16_t>("out", out),
                       call.aligned<const uint16_t>("z", z),
                       call.aligned<const float>("mean", mean),
                       call.aligned<uint16_t>("g", g),
                       call.aligned<float>("partials", partials),
                       runs_of_pixels(call, n * h * w, k, run_pixels)};
    with_element_type(call, element_type, [&]<ElementType kType>() {
        auto kernel = out == 0 ? kernels::bn_act_backward<kType, false> : kernels::bn_act_backward<kType, true>;
        run<BnActBackward>(call, kernel, p, p.tiles.blocks(), kThreads, kSumBytes, stream);
    });
}

void bn_backward_apply(Pointer g, Pointer z, Pointer a, Pointer b, Pointer c, Pointer dz, int element_type, int64_t n,
                       int64_t h, int64_t w, int64_t k, Pointer stream) {
    Call call("bn_backward_apply", {n, h, w, k});
    call.map("g", n, h, w, k);
    call.require((z == 0) == (b == 0) && (b == 0) == (c == 0), "z, b and c belong together");
    BnBackwardApply p = {call.aligned<const uint16_t>("g", g),
                         call.aligned_or_null<const uint16_t>("z", z),
                         call.aligned<const float>("a", a),
                         call.aligned_or_null<const float>("b", b),
                         call.aligned_or_null<const float>("c", c),
                         call.aligned<uint16_t>("dz", dz),
                         tiles_of_batches(as_int(n * h * w), as_int(k), kAddBatch)};
    with_element_type(call, element_type, [&]<ElementType kType>() {
        auto kernel = b == 0 ? kernels::bn_backward_apply<kType, true> : kernels::bn_backward_apply<kType, false>;
        run<BnBackwardApply>(call, kernel, p, p.tiles.blocks(), kThreads, 0, stream);
    });
}

}  // namespace launch
