// Does programmatic dependent launch shorten the gap between the kernels of a CUDA graph by a fifth or more?
//
// Gaps are a good part of batch-1 inference, which is about 50 kernels of a few microseconds.  They are launched so, by
// run_dependent of launch/check.h; with "no" they need not be, and fewer kernels (whole blocks) are what is left.  The
// detail gives the gaps without a graph too.
#include <algorithm>
#include <vector>

#include "micro.cuh"

constexpr int kKernels = 64, kRounds = 30, kBlocks = 132, kThreads = 128;
constexpr long long kCycles = 4000;  // about 2 microseconds of work in each

// Lets the next kernel start its launch at once, waits for the one before, then works for kCycles.
__global__ void work(long long* sink) {
    asm volatile("griddepcontrol.launch_dependents;");
    asm volatile("griddepcontrol.wait;" ::: "memory");
    long long start = clock64(), now = start;
    while (now - start < kCycles) now = clock64();
    if (now == 0) *sink = now;
}

void launch(cudaStream_t stream, bool dependent, long long* sink) {
    cudaLaunchConfig_t config = {};
    config.gridDim = kBlocks;
    config.blockDim = kThreads;
    config.stream = stream;
    cudaLaunchAttribute attribute;
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    config.attrs = &attribute;
    config.numAttrs = dependent;
    CHECK(cudaLaunchKernelEx(&config, work, sink));
}

// Median microseconds of `run`, which puts `kernels` of them into the stream.
template <class Run>
double microseconds(cudaStream_t stream, Run run) {
    cudaEvent_t start, end;
    CHECK(cudaEventCreate(&start));
    CHECK(cudaEventCreate(&end));
    std::vector<float> samples;
    for (int round = 0; round < kRounds; ++round) {
        CHECK(cudaEventRecord(start, stream));
        run();
        CHECK(cudaEventRecord(end, stream));
        CHECK(cudaEventSynchronize(end));
        float milliseconds;
        CHECK(cudaEventElapsedTime(&milliseconds, start, end));
        if (round >= 5) samples.push_back(milliseconds);
    }
    std::sort(samples.begin(), samples.end());
    return 1e3 * samples[samples.size() / 2];
}

// Microseconds that one more kernel adds, less what it works: twice as many kernels against one time as many, so that
// what starting and ending a sequence takes falls out.
double gap(cudaStream_t stream, bool graph, bool dependent, double work_us, long long* sink) {
    double total[2];
    for (int times = 1; times <= 2; ++times) {
        auto sequence = [=] {
            for (int i = 0; i < times * kKernels; ++i) launch(stream, dependent && i, sink);
        };
        if (!graph) {
            total[times - 1] = microseconds(stream, sequence);
            continue;
        }
        cudaGraph_t recorded;
        cudaGraphExec_t executable;
        CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
        sequence();
        CHECK(cudaStreamEndCapture(stream, &recorded));
        CHECK(cudaGraphInstantiate(&executable, recorded, 0));
        total[times - 1] = microseconds(stream, [=] { CHECK(cudaGraphLaunch(executable, stream)); });
    }
    return (total[1] - total[0]) / kKernels - work_us;
}

// The nanoseconds of the timer that kCycles take at the clock of the moment, measured in one long kernel.
__global__ void long_work(long long cycles, long long* sink) {
    long long start = clock64(), now = start;
    while (now - start < cycles) now = clock64();
    if (now == 0) *sink = now;
}

int main() {
    require_hopper();
    long long* sink;
    CHECK(cudaMalloc(&sink, sizeof(*sink)));
    cudaStream_t stream;
    CHECK(cudaStreamCreate(&stream));
    constexpr int kTimes = 1000;
    double one = microseconds(stream, [=] { long_work<<<kBlocks, kThreads, 0, stream>>>(kTimes * kCycles, sink); });
    double two = microseconds(stream, [=] { long_work<<<kBlocks, kThreads, 0, stream>>>(2 * kTimes * kCycles, sink); });
    double work_us = (two - one) / kTimes;
    double plain = gap(stream, false, false, work_us, sink), dependent = gap(stream, false, true, work_us, sink);
    double graph = gap(stream, true, false, work_us, sink), both = gap(stream, true, true, work_us, sink);
    finish(both <= 0.8 * graph ? "yes" : "no",
           "microseconds between kernels of %.2f us: stream %.2f, stream with dependent launch %.2f, graph %.2f, graph "
           "with "
           "dependent launch %.2f",
           work_us, plain, dependent, graph, both);
}
