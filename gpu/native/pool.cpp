#include "pool.h"

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

namespace pawl {

void relax() {
#if defined(__x86_64__) || defined(__i386__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

namespace {

// About 20 microseconds: longer than most waits inside a step, shorter than a time slice given up.
constexpr int kSpins = 600;

template <class Condition>
inline void spin_until(Condition&& holds) {
    for (int spins = 0; !holds(); ++spins) {
        if (spins < kSpins)
            relax();
        else
            std::this_thread::yield();
    }
}

}  // namespace

void Walk::wait(const PhaseCounter& counter, int64_t tasks) {
    spin_until([&] { return counter.done.load(std::memory_order_acquire) >= tasks; });
}

Pool::Pool(int threads) {
    for (int thread = 1; thread < threads; ++thread) workers_.emplace_back([this, thread] { work(thread); });
}

Pool::~Pool() {
    {
        std::lock_guard<std::mutex> guard(mutex_);
        step_.store(kStop);
    }
    wake_.notify_all();
    for (std::thread& worker : workers_) worker.join();
}

void Pool::run(int phases, const Body& body) {
    if (phases > num_counters_) {
        counters_.reset(new PhaseCounter[size_t(phases)]);
        num_counters_ = phases;
    } else {
        for (int i = 0; i < phases; ++i) {
            counters_[size_t(i)].claimed.store(0, std::memory_order_relaxed);
            counters_[size_t(i)].done.store(0, std::memory_order_relaxed);
        }
    }
    body_ = &body;
    if (!workers_.empty()) {
        {
            std::lock_guard<std::mutex> guard(mutex_);
            const uint64_t step = step_.load() + 1;
            open_.store(step);
            step_.store(step);
        }
        wake_.notify_all();
    }
    Walk walk(counters_.get(), 0);
    body(walk);
    // A worker announces itself before it looks whether the step is open, so after this none is or gets inside.
    open_.store(0);
    spin_until([&] { return inside_.load() == 0; });
}

uint64_t Pool::next_step(uint64_t seen) {
    for (int spins = 0; spins < kSpins; ++spins) {
        if (step_.load() != seen) return step_.load();
        relax();
    }
    std::unique_lock<std::mutex> lock(mutex_);
    wake_.wait(lock, [&] { return step_.load() != seen; });
    return step_.load();
}

void Pool::work(int thread) {
    for (uint64_t seen = 0;;) {
        seen = next_step(seen);
        if (seen == kStop) return;
        inside_.fetch_add(1);
        if (open_.load() == seen) {
            Walk walk(counters_.get(), thread);
            (*body_)(walk);
        }
        inside_.fetch_sub(1);
    }
}

}  // namespace pawl
