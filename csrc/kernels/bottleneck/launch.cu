#include <algorithm>

#include "kernels/bottleneck/kernel.cuh"
#include "kernels/bottleneck/launch.h"
#include "kernels/bottleneck/maps.h"
#include "launch/hopper.h"

namespace launch {

using namespace bottleneck_inference;

namespace {

struct Tensors {
    const uint16_t *x, *weight1, *weight2, *weight3, *downsample;
    uint16_t* y;
    int n, h, w;
};

template <ElementType kType, class P, class Kernel>
void run_kernel(const Call& call, Kernel kernel, const Tensors& tensors, Arguments arguments, Pointer stream) {
    const Problem& problem = arguments.problem = P::problem(tensors.n, tensors.h, tensors.w);
    int channels = arguments.slices * kSliceChannels;
    MapShape projection = weights_shape(P::kOutputChannels, 1, channels);
    MapShape even = input_shape<P>(arguments, P::kStride == 1 ? P::kOddPixels : P::kEvenPixels);
    Parameters parameters = {
        tensor_map(call, "x", tensors.x, input_shape<P>(arguments, P::kOddPixels), kType),
        tensor_map(call, "x", tensors.x, even, kType),
        tensor_map(call, "weight1", tensors.weight1, weights_shape(P::kChannels, 1, channels), kType),
        tensor_map(call, "weight2", tensors.weight2, weights_shape(P::kChannels, kTaps, P::kChannels), kType),
        tensor_map(call, "weight3", tensors.weight3, weights_shape(P::kOutputChannels, 1, P::kChannels), kType),
        tensor_map(call, "downsample", P::kIdentity ? tensors.weight1 : tensors.downsample, projection, kType),
        tensor_map(call, "y", tensors.y, output_shape<P>(problem), kType),
        arguments};
    count_loads(parameters.input);
    count_loads(parameters.input_even);
    for (TensorMap* map : {&parameters.weight1, &parameters.weight2, &parameters.weight3, &parameters.downsample})
        promise_constant(*map, arguments.weights_ready);
    int blocks = std::min(multiprocessors(call), P::tile_count(problem));
    allow_shared_memory(call, kernel, P::kSharedBytes);
    run_dependent<Parameters>(call, kernel, parameters, blocks, kThreads, P::kSharedBytes, stream);
}

// Calls `choose` with what the kernel is a template of: channels, stride, shortcut, and where the weights are.
template <class Choose>
void with_plan(const Arguments& arguments, int64_t channels, int64_t stride, bool is_identity, Choose choose) {
    constexpr Shortcut kIdentity = Shortcut::kIdentity, kProjection = Shortcut::kProjection;
    constexpr Weights kStreamed = Weights::kStreamed, kResident = Weights::kResident;
    if (channels == 64 && stride == 1) {
        if (is_identity) return choose.template operator()<64, 1, kIdentity, kResident>();
        if (arguments.slices == 1) return choose.template operator()<64, 1, kProjection, kResident>();
        return choose.template operator()<64, 1, kProjection, kStreamed>();
    }
    if (channels == 64) return choose.template operator()<64, 2, kProjection, kStreamed>();
    if (stride == 2) return choose.template operator()<128, 2, kProjection, kStreamed>();
    if (is_identity) return choose.template operator()<128, 1, kIdentity, kStreamed>();
    return choose.template operator()<128, 1, kProjection, kStreamed>();
}

void check_shape(const Call& call, int64_t n, int64_t h, int64_t w, int64_t c_in, int64_t c, int64_t stride,
                 bool is_identity) {
    call.require(c == 64 || c == 128, std::to_string(c) + " channels of the 3x3 convolution are neither 64 nor 128");
    call.require(stride == 1 || stride == 2, "stride " + std::to_string(stride) + " is neither 1 nor 2");
    call.map("x", n, h, w, c_in);
    call.map("y", n, (h - 1) / stride + 1, (w - 1) / stride + 1, kExpansion * c);
    std::string channels = std::to_string(c_in) + " channels of x";
    if (is_identity) {
        call.require(stride == 1, "stride 2 needs a downsample: x is no shortcut of half its size");
        call.require(c_in == kExpansion * c, channels + " are not the " + std::to_string(kExpansion * c) +
                                                 " of the output, and there is no downsample");
    } else {
        constexpr int kMost = kMaxProjectedSlices * kSliceChannels;
        call.require(c_in % kSliceChannels == 0 && c_in <= kMost,
                     channels + " are none of 64, 128, 192 and 256, which are those that a downsample may have");
    }
}

Norm norm_of(const Call& call, const std::string& of, Pointer scale, Pointer shift) {
    return {call.aligned<const float>(("the scale of " + of).c_str(), scale),
            call.aligned<const float>(("the shift of " + of).c_str(), shift)};
}

}  // namespace

void bottleneck_inference(Pointer x, Pointer weight1, Pointer scale1, Pointer shift1, Pointer weight2, Pointer scale2,
                          Pointer shift2, Pointer weight3, Pointer scale3, Pointer shift3, Pointer downsample,
                          Pointer downsample_scale, Pointer downsample_shift, Pointer y, int element_type, int64_t n,
                          int64_t h, int64_t w, int64_t c_in, int64_t c, int64_t stride, bool weights_ready,
                          Pointer stream) {
    Call call("bottleneck_inference", {n, h, w, c_in, c});
    bool is_identity = downsample == 0;
    check_shape(call, n, h, w, c_in, c, stride, is_identity);
    call.require(!is_identity || (downsample_scale == 0 && downsample_shift == 0),
                 "downsample is missing, but not its scale and shift");
    Arguments arguments = {};
    arguments.slices = as_int(c_in / kSliceChannels);
    arguments.weights_ready = weights_ready;
    arguments.conv1 = norm_of(call, "weight1", scale1, shift1);
    arguments.conv2 = norm_of(call, "weight2", scale2, shift2);
    arguments.conv3 = norm_of(call, "weight3", scale3, shift3);
    if (!is_identity) arguments.downsample = norm_of(call, "downsample", downsample_scale, downsample_shift);
    Tensors tensors = {call.aligned<const uint16_t>("x", x),
                       call.aligned<const uint16_t>("weight1", weight1),
                       call.aligned<const uint16_t>("weight2", weight2),
                       call.aligned<const uint16_t>("weight3", weight3),
                       call.aligned_or_null<const uint16_t>("downsample", downsample),
                       call.aligned<uint16_t>("y", y),
                       as_int(n),
                       as_int(h),
                       as_int(w)};
    with_element_type(call, element_type, [&]<ElementType kType>() {
        with_plan(arguments, c, stride, is_identity,
                  [&]<int kChannels, int kStride, Shortcut kShortcut, Weights kWeights>() {
                      using P = Plan<kChannels, kStride, kShortcut, kWeights>;
                      auto kernel = bottleneck_inference_kernel<kType, kChannels, kStride, kShortcut, kWeights>;
                      run_kernel<kType, P>(call, kernel, tensors, arguments, stream);
                  });
    });
}

}  // namespace launch
