// What the launchers of conv3x3_halo and of its gradients have in common.
#pragma once
#include "launch/check.h"

namespace launch {

// Of a convolution that none of the compiled plans is for.
[[noreturn]] inline void refuse_channels(const Call& call, int64_t channels, int64_t filters, int64_t stride) {
    throw std::invalid_argument(call.name() + ": " + std::to_string(channels) + " channels to " +
                                std::to_string(filters) + " with stride " + std::to_string(stride) +
                                ": it takes 64, 128, 256 or 512 to as many, and with stride 2 64, 128 or 256 to twice" +
                                " as many");
}

}  // namespace launch
