// conv1x1_dgrad, consumers: d[pixel][channel] = sum over the filters of dz * weight.
//
// dz is made in the registers of operand A, where g and z arrive anyhow: they need no room for it in shared memory, no
// fence, and no barrier with other warps. The price is that every tile of channels makes it anew.
#pragma once
#include "kernels/conv1x1/dgrad/plan.cuh"
#include "kernels/conv1x1/forward/multiply.cuh"

namespace conv1x1_dgrad {

struct NormVectors {
    Floats2 a[2], b[2], c[2];  // of the filter pairs in a fragment's registers 0, 1 and 2, 3
};

// Filters that do not exist become 0.
DEVICE NormVectors load_vectors(const DgradArguments& arguments, int first_filter) {
    const BnBackward& norm = arguments.norm;
    NormVectors result = {};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        if (first_filter + 8 * half >= arguments.filters) continue;
        int filter = first_filter + 8 * half + lane_index() % 4 * 2;
        result.a[half] = load_pair(norm.a + filter);
        if (!norm.b) continue;
        result.b[half] = load_pair(norm.b + filter);
        result.c[half] = load_pair(norm.c + filter);
    }
    return result;
}

// dz of half a slice.
template <class V>
DEVICE void make_gradient(Fragments& dz, int stage, int half, const DgradArguments& arguments, int first_filter,
                          const Consumer& consumer) {
#pragma unroll
    for (int i = 0; i < kHalfSteps; ++i) {
        int step = half * kHalfSteps + i;
        NormVectors norm = load_vectors(arguments, first_filter + 16 * step);
#pragma unroll
        for (int block = 0; block < kRowBlocks; ++block) {
            int pixel = block * 64 + consumer.warp * 16;
            uint32_t g[4], z[4] = {};
            load_matrix_x4(matrix_row(V::g(stage), pixel, 2 * step), g);
            if (arguments.norm.b) load_matrix_x4(matrix_row(V::z(stage), pixel, 2 * step), z);
#pragma unroll
            for (int j = 0; j < 4; ++j)
                dz.value[i][block][j] =
                    kernels::bn_backward<V::kType>(g[j], z[j], norm.a[j / 2], norm.b[j / 2], norm.c[j / 2]);
        }
    }
}

template <class V>
DEVICE void multiply_gradient(Accumulators<V>& d, const Fragments& dz, uint64_t weights, bool accumulate) {
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < kHalfSteps; ++step)
#pragma unroll
        for (int block = 0; block < kRowBlocks; ++block)
            wgmma_rs<V::kType, kTileChannels, Major::kMN>(d.block[block], dz.value[step][block],
                                                          advanced(weights, step * kStepRowsBytes),
                                                          accumulate || step > 0);
    wgmma_commit();
}

// It is this consumer's turn. `first_use` counts the stages that all tiles before have used.
template <class V>
DEVICE void multiply_slices(Accumulators<V>& d, const DgradArguments& arguments, int slices, int first_use,
                            const Consumer& consumer) {
    Fragments first, second;
#pragma unroll 1
    for (int slice = 0; slice < slices; ++slice) {
        Turn at = turn<V::kStages>(first_use + slice);
        int filter = slice * kSliceChannels;
        uint64_t weights = matrix_descriptor(V::weights(at.slot), V::kWeightSliceBytes, kAtomBytes, Swizzle::k128B);
        mbarrier_wait(V::full(at.slot), at.parity);
        make_gradient<V>(first, at.slot, 0, arguments, filter, consumer);
        multiply_gradient<V>(d, first, weights, slice > 0);
        if (slice > 0) release_previous<V>(first_use + slice);
        make_gradient<V>(second, at.slot, 1, arguments, filter, consumer);
        multiply_gradient<V>(d, second, advanced(weights, kHalfSteps * kStepRowsBytes), true);
        wgmma_wait<1>();
    }
    finish_products<V>(d, first_use + slices, consumer);
}

}  // namespace conv1x1_dgrad
