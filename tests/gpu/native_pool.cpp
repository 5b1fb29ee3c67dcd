// Walks of a pool in which `absent` of `threads` do not run until all phases are over: from the beginning, or (third
// argument 1) from the third phase on. Prints how often each task was run, phase by phase.
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "pool.h"

namespace {

constexpr int kPhases = 4;
constexpr int64_t kTasks[kPhases] = {1, 7, 64, 5};

}  // namespace

int main(int count, char** arguments) {
    if (count != 4) return 2;
    const int threads = std::atoi(arguments[1]), absent = std::atoi(arguments[2]);
    const bool leave = std::atoi(arguments[3]) != 0;
    pawl::Pool pool(threads);
    std::vector<std::vector<std::atomic<int>>> runs;
    for (int64_t tasks : kTasks) runs.emplace_back(size_t(tasks));
    std::atomic<bool> over{false};
    const auto away = [&] {
        for (int spins = 0; !over.load(); ++spins) pawl::Walk::pause(spins);
    };
    // Twice: counters are set back for the second one.
    for (int repetition = 0; repetition < 2; ++repetition) {
        over.store(false);
        pool.run(kPhases, [&](pawl::Walk& walk) {
            const bool stays_away = walk.thread != 0 && walk.thread <= absent;
            if (stays_away && !leave) away();
            for (int phase = 0; phase < kPhases; ++phase) {
                if (stays_away && leave && phase == 2) away();
                walk.phase(kTasks[phase], [&](int64_t task) { ++runs[size_t(phase)][size_t(task)]; });
            }
            if (walk.thread == 0) over.store(true);
        });
    }
    for (const auto& phase : runs) {
        for (const auto& times : phase) std::printf("%d ", times.load());
        std::printf("\n");
    }
    return 0;
}
