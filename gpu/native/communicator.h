// Ranks: processes that compute a step together, each its own columns of every product, in buffers that all of them map.
//
// There is nothing to send: a rank writes its columns where the others read them. What keeps writers and readers apart
// are meetings. A rank counts the phases after which it arrived, and goes on when all others have counted as far: it
// then sees all that they wrote before. It waits by spinning, then by giving its core away, then asleep, so that ranks
// need no core each.
//
// A rank that does not come within the deadline, whose process is gone, or that was told another step, breaks the
// segment for good, and all ranks leave with the reason. Each place is taken once in the life of a segment, which has a
// number: a rank of an earlier life finds no place.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace pawl {

// What ranks are waiting in. The words of one rank share a cache line that nobody else writes, but to fall asleep.
struct alignas(64) Place {
    std::atomic<uint32_t> met;        // meetings at which it arrived, modulo 2^32; waiters sleep on it
    std::atomic<uint32_t> sleepers;   // threads that do
    std::atomic<int32_t> process;     // 0: not here yet
    std::atomic<uint32_t> left;       // 1: it will not come again
    std::atomic<uint64_t> step[2];    // digests of its steps, by turns: it may say the next while another compares this
};

// The first page of a segment. Whoever makes one writes `life` and `ranks` (`gpu/native/ranks.py`); the rest is zero.
constexpr int kMostRanks = 32;
struct SegmentHeader {
    uint64_t life;
    uint32_t ranks;
    std::atomic<uint32_t> broken;   // 1 + the rank for which all others gave up
    Place places[kMostRanks];
};
constexpr int64_t kHeaderBytes = 4096;
static_assert(sizeof(SegmentHeader) <= kHeaderBytes);
static_assert(std::atomic<uint32_t>::is_always_lock_free && std::atomic<uint64_t>::is_always_lock_free);

// Buffers lie apart in the file by more than any of them has, so that each grows where it is; what is between takes no
// memory. What a buffer holds stays, and so do zeros between its columns.
constexpr int kSharedBuffers = 6;
constexpr int64_t kBufferSpacing = int64_t(1) << 38;

class Communicator {
public:
    // Take `rank`'s place in the segment at `path`, of this life. Throws Refused.
    Communicator(const std::string& path, uint64_t life, int rank, int ranks, double timeout_s);
    ~Communicator();
    Communicator(const Communicator&) = delete;
    Communicator& operator=(const Communicator&) = delete;

    const int rank, ranks;

    // At least `bytes` of shared memory for a buffer; addresses that were given before mean nothing any more.
    void* reserve(int buffer, int64_t bytes);

    uint32_t met() const { return place(rank).met.load(std::memory_order_relaxed); }
    // Say that all this rank wrote so far may be read. One thread; nothing once the ranks are lost.
    void arrive();
    // Until all ranks have arrived `number` times, or are lost. Any threads.
    void wait(uint32_t number);
    // As `wait`, for one thread of a rank, whose waits are added up.
    void wait_measured(uint32_t number);
    int64_t waited_ns() const { return waited_ns_.load(std::memory_order_relaxed); }
    // The step that this rank computes; said before it arrives, compared after the wait.
    void say_step(uint64_t digest) { place(rank).step[++steps_ % 2].store(digest, std::memory_order_relaxed); }
    void compare_steps();

    // Give up, for all ranks, because of `blamed`.
    void give_up(int blamed, const std::string& reason);
    bool lost() const { return lost_.load(std::memory_order_acquire); }
    std::string reason() const;

private:
    struct Mapping {
        void* data = nullptr;
        int64_t bytes = 0;
    };

    Place& place(int of) const { return header_->places[of]; }
    bool has_come(int other, uint32_t number) const {
        return int32_t(place(other).met.load(std::memory_order_acquire) - number) >= 0;
    }
    void wait_slowly(int other, uint32_t number);
    bool is_gone(int other);
    void close();

    SegmentHeader* header_ = nullptr;
    int file_ = -1;
    const int64_t timeout_ns_;
    Mapping buffers_[kSharedBuffers];
    uint32_t steps_ = 0;   // those that were said
    std::atomic<int64_t> waited_ns_{0};
    std::atomic<bool> lost_{false};
    mutable std::mutex mutex_;
    std::string reason_;               // under the mutex, as are the next
    std::vector<int> process_files_;   // for each rank: readable once its process has ended; -1: not open
};

}  // namespace pawl
