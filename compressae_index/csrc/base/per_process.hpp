// State that each process has for itself, even one forked while other threads were at work.
#pragma once

#include <pthread.h>

#include <atomic>

namespace compressae {

// How many forks lie between this process and the one that loaded the engine. Not its number, which the system gives
// again to others.
inline unsigned generation() {
  static std::atomic<unsigned> forks{0};
  static const int registered = pthread_atfork(nullptr, nullptr, [] { ++forks; });
  static_cast<void>(registered);
  return forks.load(std::memory_order_relaxed);
}

// A T that a forked child makes anew: the parent's may be locked by a thread, or be half changed by one, that the child
// does not have. The child leaves the parent's alone, memory and all.
template <typename T>
class PerProcess {
 public:
  PerProcess() = default;
  PerProcess(const PerProcess&) = delete;
  PerProcess& operator=(const PerProcess&) = delete;
  ~PerProcess() {
    const Made* made = made_.load();
    if (made != nullptr && made->generation == generation()) delete made;
  }

  T& get() {
    const unsigned now = generation();
    Made* made = made_.load();
    while (made == nullptr || made->generation != now) {
      auto* mine = new Made{now, {}};
      if (made_.compare_exchange_strong(made, mine)) return mine->value;
      delete mine;
    }
    return made->value;
  }

 private:
  struct Made {
    const unsigned generation;
    T value;
  };

  std::atomic<Made*> made_{nullptr};
};

}  // namespace compressae
