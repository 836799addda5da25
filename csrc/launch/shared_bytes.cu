#include "kernels/bottleneck_inference_plan.cuh"
#include "kernels/conv1x1_plan.cuh"
#include "kernels/conv1x1_products_plan.cuh"
#include "kernels/conv3x3_halo_dgrad_plan.cuh"
#include "kernels/conv3x3_halo_plan.cuh"
#include "kernels/conv3x3_halo_wgrad_plan.cuh"
#include "kernels/map_tiles.cuh"
#include "launch/device.h"

namespace launch {

namespace {

using Bytes = std::map<std::string, int>;

// Of an instantiation, by the kernel's name and its template arguments behind the element type.
template <class Plan>
void add(Bytes& bytes, std::string name, std::initializer_list<int> arguments) {
    for (int argument : arguments) name.append(" ").append(std::to_string(argument));
    bytes[name] = Plan::kSharedBytes;
}

template <int... kChannels>
void add_conv3x3_halo(Bytes& bytes) {
    using conv3x3_halo::Plan;
    for (int epilogue : {0, 1}) {
        (add<Plan<kChannels, 1>>(bytes, "conv3x3_halo_kernel", {kChannels, 1, epilogue}), ...);
        (add<Plan<kChannels, 2>>(bytes, "conv3x3_halo_kernel", {kChannels, 2, epilogue}), ...);
    }
}

template <conv1x1::Epilogue kEpilogue, bool kPrologue, int... kFilters>
void add_conv1x1(Bytes& bytes) {
    (add<conv1x1::Variant<ElementType::kBf16, kFilters, kEpilogue, kPrologue>>(
         bytes, "conv1x1_kernel", {kFilters, static_cast<int>(kEpilogue), kPrologue}),
     ...);
}

template <int... kChannels>
void add_conv1x1_products(Bytes& bytes) {
    (add<conv1x1_products::Variant<ElementType::kBf16, kChannels>>(bytes, "conv1x1_products_kernel", {kChannels}), ...);
}

template <int kChannels, int kStride, bottleneck_inference::Shortcut kShortcut, bottleneck_inference::Weights kWeights>
void add_bottleneck(Bytes& bytes) {
    add<bottleneck_inference::Plan<kChannels, kStride, kShortcut, kWeights>>(
        bytes, "bottleneck_inference_kernel",
        {kChannels, kStride, static_cast<int>(kShortcut), static_cast<int>(kWeights)});
}

void add_bottlenecks(Bytes& bytes) {
    using enum bottleneck_inference::Shortcut;
    using enum bottleneck_inference::Weights;
    add_bottleneck<64, 1, kIdentity, kResident>(bytes);
    add_bottleneck<64, 1, kProjection, kResident>(bytes);
    add_bottleneck<64, 1, kProjection, kStreamed>(bytes);
    add_bottleneck<64, 2, kProjection, kStreamed>(bytes);
    add_bottleneck<128, 1, kIdentity, kStreamed>(bytes);
    add_bottleneck<128, 1, kProjection, kStreamed>(bytes);
    add_bottleneck<128, 2, kProjection, kStreamed>(bytes);
}

template <int... kChannels>
void add_conv3x3_halo_backward(Bytes& bytes) {
    using conv3x3_halo_dgrad::DgradPlan;
    (add<DgradPlan<kChannels, 1, false>>(bytes, "conv3x3_halo_dgrad_kernel", {kChannels, 1, 0}), ...);
    (add<DgradPlan<kChannels, 2, false>>(bytes, "conv3x3_halo_dgrad_kernel", {kChannels, 2, 0}), ...);
    (add<DgradPlan<kChannels, 1, true>>(bytes, "conv3x3_halo_dgrad_kernel", {kChannels, 1, 1}), ...);
    add<conv3x3_halo_wgrad::WgradPlan<1>>(bytes, "conv3x3_halo_wgrad_kernel", {1});
    add<conv3x3_halo_wgrad::WgradPlan<2>>(bytes, "conv3x3_halo_wgrad_kernel", {2});
}

}  // namespace

std::map<std::string, int> shared_bytes() {
    Bytes bytes;
    for (const char* name : {"bn_act_backward", "bn_relu_maxpool_backward", "global_avg_pool", "channel_stats"})
        bytes[name] = kernels::kSumBytes;
    for (const char* name : {"merge_partials", "bn_finalize"}) bytes[name] = kernels::kMomentsBytes;
    bytes["sum_partials"] = kernels::kVectorSumBytes;
    if (!FUSED_RESNET_HOPPER) return bytes;

    using conv1x1::Epilogue;
    add_conv3x3_halo<64, 128, 256, 512>(bytes);
    add_conv1x1<Epilogue::kScaleShiftAct, false, 64, 128>(bytes);
    add_conv1x1<Epilogue::kScaleShiftAct, true, 64, 128>(bytes);
    add_conv1x1<Epilogue::kStatistics, false, 64, 128>(bytes);
    add_conv1x1<Epilogue::kStatistics, true, 64, 128>(bytes);
    add_conv1x1_products<64, 128>(bytes);
    add_bottlenecks(bytes);
    if (FUSED_RESNET_HOPPER) add_conv3x3_halo_backward<64, 128, 256, 512>(bytes);
    return bytes;
}

}  // namespace launch
