// A few threads that walk through a step together.
//
// A step is a sequence of phases, a phase a number of independent tasks. Every thread runs the same sequence; in each
// phase it claims tasks until none is left, and goes on when all are done, by whomever. So nobody waits for a thread
// that does not run: one that comes late finds the phases empty and catches up. Between steps the threads sleep.
//
// Tasks are in the order of the rows they are for, and each thread has a part of them to begin with, always the same
// one: what it wrote in the phase before is still in its own cache. A line that another core has written takes six times
// as long to come where that core has another cache of the last level. Whoever is done with its part helps the others.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace pawl {

struct alignas(64) Counter {
    std::atomic<int64_t> value{0};
};

// Where part `part` of `parts` begins, of `items` in parts that are as equal as can be.
inline int64_t part_begin(int64_t items, int64_t part, int64_t parts) { return (items * part + parts - 1) / parts; }

// Pauses before a thread that waits gives its core away: about 20 microseconds, longer than most waits inside a step,
// shorter than a time slice. In between it looks every two microseconds whether others are behind: a look makes the next
// claim there slower, and what is taken away is missing in that thread's cache in the next phase.
constexpr int kPauses = 640, kLook = 64;

// One thread's walk through the phases of one step.
class Walk {
public:
    Walk(Counter* first, int thread, int threads) : thread(thread), threads(threads), next_(first) {}

    const int thread, threads;
    uint32_t meetings = 0;   // with other ranks, so far

    // Run work(0) .. work(tasks - 1), each once, by any thread; returns when all of them are done and visible.
    template <class Work>
    void phase(int64_t tasks, Work&& work) {
        Counter& done = next_[0];
        Counter* claimed = next_ + 1;
        next_ += 1 + threads;
        // Tasks of a part until none is left, or once.
        const auto take = [&](int part, bool once) {
            const int64_t begin = part_begin(tasks, part, threads), size = part_begin(tasks, part + 1, threads) - begin;
            int64_t finished = 0;
            for (int64_t task; (task = claimed[part].value.fetch_add(1, std::memory_order_relaxed)) < size;) {
                work(begin + task);
                ++finished;
                if (once) break;
            }
            if (finished > 0) done.value.fetch_add(finished, std::memory_order_release);
        };
        take(thread, false);
        for (int spins = 0; done.value.load(std::memory_order_acquire) < tasks;) {
            const int part = spins % kLook == kLook - 1 ? behind(claimed, tasks, spins) : thread;
            if (part != thread)
                take(part, true);
            else
                pause(spins++);
        }
    }

    // Wait a moment; after many, let others have the core.
    static void pause(int spins);

private:
    // Whose part to help with: of a thread that has not come yet; after half of the pauses, of one with more than a
    // quarter left; after all, of any with something left. This thread: nobody's.
    int behind(const Counter* claimed, int64_t tasks, int spins) const;

    Counter* next_;   // of the next phase: what is done, and what each thread's part has claimed
};

// Tell the core that this thread waits for another.
void relax();

class Pool {
public:
    typedef std::function<void(Walk&)> Body;

    explicit Pool(int threads);
    ~Pool();
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    int threads() const { return int(workers_.size()) + 1; }

    // Run `body`, which goes through at most `phases` phases, on this thread and the workers. One caller at a time.
    void run(int phases, const Body& body);

private:
    void work(int thread);
    uint64_t next_step(uint64_t seen);

    std::vector<std::thread> workers_;
    std::unique_ptr<Counter[]> counters_;   // [phases][1 + threads]
    int num_counters_ = 0;
    const Body* body_ = nullptr;

    std::mutex mutex_;
    std::condition_variable wake_;
    std::atomic<uint64_t> step_{0};    // number of the newest step; kStop ends the workers
    std::atomic<uint64_t> open_{0};    // number of the step that may be entered, 0: none
    std::atomic<int> inside_{0};       // workers that are or may be in it
    static constexpr uint64_t kStop = ~uint64_t(0);
};

}  // namespace pawl
