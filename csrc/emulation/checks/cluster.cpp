// Clusters under emulation: an exchange between their CTAs that is right under every schedule, and every rule of the
// cluster broken once. Run by tests/kernels/test_emulation.py.
#include <set>

#include "emulation/c_function.hpp"

namespace {

constexpr int kRanks = 4, kThreads = 64;
constexpr SmemAddress kReceived = 0;                      // kRanks x 16 bytes a thread
constexpr SmemAddress kArrived = kRanks * kThreads * 16;  // barrier: what others have sent is there
constexpr SmemAddress kTaken = kArrived + 8;              // barrier: all others have taken what was sent
constexpr uint32_t kSharedBytes = kTaken + 8, kBytesFromOne = kThreads * 16;

template <class Body>
void run(int clusters, int seed, Body body) {
    emu::launch({clusters * kRanks, kThreads, kSharedBytes, static_cast<unsigned>(seed), 1, false, kRanks}, [&] {
        if (thread_index() == 0) {
            mbarrier_init(kArrived, 1);
            mbarrier_init(kTaken, kRanks - 1);
            mbarrier_init_fence();
        }
        body();
    });
}

SmemAddress slot(int sender) { return kReceived + (sender * kThreads + thread_index()) * 16; }

void send(int to, uint32_t value) {
    store_remote(remote_address(slot(cluster_rank()), to), Chunk{{value, value, value, value}},
                 remote_address(kArrived, to));
}

// Every thread sends something new to its likes in every round, and adds up what it gets.
void exchange(std::vector<uint32_t>& sums, int rounds) {
    cluster_sync();
    uint32_t sum = 0;
    for (int round = 0; round < rounds; ++round) {
        if (thread_index() == 0) mbarrier_arrive_expect_tx(kArrived, (kRanks - 1) * kBytesFromOne);
        if (round > 0) mbarrier_wait(kTaken, (round - 1) % 2);
        for (int rank = 0; rank < kRanks; ++rank)
            if (rank != cluster_rank()) send(rank, 1000 * round + block_index());
        mbarrier_wait(kArrived, round % 2);
        for (int rank = 0; rank < kRanks; ++rank)
            if (rank != cluster_rank()) sum += load_shared<Chunk>(slot(rank)).word[3];
        cta_sync();
        if (thread_index() < kRanks && thread_index() != cluster_rank())
            mbarrier_arrive_remote(remote_address(kTaken, thread_index()));
    }
    sums[block_index() * kThreads + thread_index()] = sum;
    cluster_sync();
}

void check_exchange(int seed) {
    constexpr int kClusters = 2, kRounds = 5;
    std::vector<uint32_t> sums(kClusters * kRanks * kThreads);
    run(kClusters, seed, [&] { exchange(sums, kRounds); });
    for (int i = 0; i < int(sums.size()); ++i) {
        uint32_t block = i / kThreads, expected = 0;
        for (uint32_t round = 0; round < kRounds; ++round)
            for (uint32_t rank = 0; rank < kRanks; ++rank)
                if (rank != block % kRanks) expected += 1000 * round + block / kRanks * kRanks + rank;
        if (sums[i] != expected) emu::fail("sum %d is %u, not %u", i, sums[i], expected);
    }
}

// ---- one broken rule each; rank 0 is the one that others reach into ----

const std::set<std::string> kRules = {
    "remote bounds", "remote address", "rank",  "no cluster_sync", "in flight",        "not taken",
    "early end",     "early credit",   "proxy", "two CTAs",        "missing a thread", "expect_tx"};

// Rank 1 sends 16 bytes to rank 0, which waits for them or not.
void send_to_zero(bool waits) {
    if (cluster_rank() == 1 && thread_index() == 0) send(0, 7);
    if (cluster_rank() == 0 && thread_index() == 0) {
        mbarrier_arrive_expect_tx(kArrived, 16);
        if (waits) mbarrier_wait(kArrived, 0);
    }
}

void break_rule(const std::string& rule) {
    bool is_first = thread_index() == 0, sends = cluster_rank() == 1 && is_first, receives = cluster_rank() == 0;
    SmemAddress arrived_at_zero = remote_address(kArrived, 0), slot_of_one = kReceived + kThreads * 16;
    if (rule == "no cluster_sync" && sends) mbarrier_arrive_remote(arrived_at_zero);
    cluster_sync();
    if (rule == "remote bounds" && sends) store_remote(remote_address(kSharedBytes, 0), Chunk{}, arrived_at_zero);
    if (rule == "remote address" && sends) store_shared(remote_address(kReceived, 0), 1u);
    if (rule == "rank") remote_address(0, kRanks);
    if (rule == "two CTAs" && sends) store_remote(remote_address(0, 0), Chunk{}, remote_address(kArrived, 2));
    if (rule == "in flight") {
        send_to_zero(false);
        cluster_sync();
        if (receives && is_first) load_shared<uint32_t>(slot_of_one);
    }
    if (rule == "not taken" && receives && is_first) store_shared(slot_of_one, Chunk{});
    if (rule == "not taken") send_to_zero(true);
    if (rule == "proxy") {
        send_to_zero(true);
        TensorMap map;
        if (receives && is_first) tma_store_4d(map, slot_of_one, 0, 0, 0, 0);
    }
    if (rule == "expect_tx" && sends) send(0, 7);
    if (rule == "expect_tx" && receives && is_first) {
        mbarrier_arrive_expect_tx(kArrived, 32);
        mbarrier_wait(kArrived, 0);
    }
    if (rule == "early end") send_to_zero(false);
    if (rule == "early credit" && sends) mbarrier_arrive_remote(remote_address(kTaken, 0));
    if (rule == "missing a thread" && sends) return;
    if (rule != "early end" && rule != "early credit") cluster_sync();
}

}  // namespace

extern "C" const char* check_cluster(int seed) {
    return message_of(1, seed, 1, [&] { check_exchange(seed); });
}

// What the emulator says of a kernel that breaks this rule; null where it says nothing.
extern "C" const char* check_cluster_rule(const char* name, int seed) {
    return message_of(1, seed, 1, [&] {
        if (kRules.contains(name)) run(1, seed, [&] { break_rule(name); });
    });
}
