// A process-wide pool of threads: as many as recent work has asked for, and none after a while without work.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <deque>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "base/per_process.hpp"

namespace compressae {

class ThreadPool {
 public:
  static ThreadPool& instance() {
    // Deliberately leaked: workers may still wait in it while the process ends.
    static auto* const pools = new PerProcess<ThreadPool>();
    return pools->get();
  }

  // The calling thread of `parallel_for` calls this every kPoll, between two tasks; if it throws, the work ends. Set it
  // before the first call.
  static void set_poll(void (*poll)()) { poll_ = poll; }

  // Runs task(0) ... task(count - 1) on at most num_threads threads, the calling one included, and returns
  // when all are done. The first exception that a task throws is thrown again here. If the system refuses more
  // threads, the existing ones do the work.
  void parallel_for(std::size_t count, std::size_t num_threads, const std::function<void(std::size_t)>& task) {
    Batch batch{count, &task};
    const std::size_t helpers = std::min(std::max<std::size_t>(num_threads, 1), count);
    Clock::time_point next_poll = Clock::now() + kPoll;
    if (helpers > 1) call(batch, helpers - 1);
    batch.run([&next_poll] { poll_when_due(next_poll); });
    if (helpers > 1) wait_for(batch, next_poll);
    if (batch.error) std::rethrow_exception(batch.error);
  }

 private:
  using Clock = std::chrono::steady_clock;

  // Between two polls of a call that takes long.
  static constexpr std::chrono::milliseconds kPoll{50};
  // How long a worker waits for work before it ends.
  static constexpr std::chrono::seconds kIdle{1};

  struct Batch {
    Batch(std::size_t n, const std::function<void(std::size_t)>* f) : count(n), task(f) {}

    template <typename Before>
    void run(const Before& before) {
      for (std::size_t i = next++; i < count; i = next++) {
        try {
          before();
          (*task)(i);
        } catch (...) {
          fail();
        }
      }
    }

    // Takes the exception that is being handled for the batch's, and begins no more tasks.
    void fail() {
      const std::lock_guard lock(error_mutex);
      if (!error) error = std::current_exception();
      next = count;
    }

    const std::size_t count;
    const std::function<void(std::size_t)>* task;
    std::atomic<std::size_t> next{0};
    std::size_t running = 0;  // guarded by the pool's mutex
    std::mutex error_mutex;
    std::exception_ptr error;
  };

  // A worker that waits.
  struct Idle {
    std::condition_variable wake;
    bool called = false;
    bool dismissed = false;
  };

  static void poll_when_due(Clock::time_point& due) {
    if (poll_ == nullptr || Clock::now() < due) return;
    poll_();
    due = Clock::now() + kPoll;
  }

  // Has up to `wanted` workers take part in a batch.
  void call(Batch& batch, std::size_t wanted) {
    const std::lock_guard lock(mutex_);
    wanted_[n_calls_++ % wanted_.size()] = wanted;
    const std::size_t needed = *std::max_element(wanted_.begin(), wanted_.end());
    while (workers_ < wanted && start_worker()) {
    }
    batch.running = std::min(wanted, workers_);
    queue_.insert(queue_.end(), batch.running, &batch);
    // Those that began to wait last are called first, so that those that are not needed wait on.
    for (std::size_t i = 0; i < batch.running && !idle_.empty(); ++i) {
      rouse(*idle_.back(), &Idle::called);
      idle_.pop_back();
    }
    while (!idle_.empty() && workers_ > needed) {
      rouse(*idle_.front(), &Idle::dismissed);
      idle_.pop_front();
      --workers_;
    }
  }

  // Returns once no worker is at the batch. What none has begun is taken back, so that a busy pool delays nobody.
  void wait_for(Batch& batch, Clock::time_point next_poll) {
    std::unique_lock lock(mutex_);
    batch.running -= std::erase(queue_, &batch);
    while (!done_.wait_for(lock, kPoll, [&] { return batch.running == 0; })) {
      lock.unlock();
      try {
        poll_when_due(next_poll);
      } catch (...) {
        batch.fail();
      }
      lock.lock();
    }
  }

  static void rouse(Idle& worker, bool Idle::* why) {
    worker.*why = true;
    worker.wake.notify_one();
  }

  // Whether the system let one start.
  bool start_worker() {
    try {
      std::thread([this] { work(); }).detach();
    } catch (const std::exception&) {
      return false;
    }
    ++workers_;
    return true;
  }

  void work() {
    Idle self;
    std::unique_lock lock(mutex_);
    for (;;) {
      if (queue_.empty() && !wait_for_work(self, lock)) return;
      if (queue_.empty()) continue;  // the caller took it back
      Batch* batch = queue_.front();
      queue_.pop_front();
      lock.unlock();
      batch->run([] {});
      lock.lock();
      if (--batch->running == 0) done_.notify_all();
    }
  }

  // Whether to go on; else the worker is no more one of the pool's.
  bool wait_for_work(Idle& self, std::unique_lock<std::mutex>& lock) {
    self.called = false;
    idle_.push_back(&self);
    self.wake.wait_for(lock, kIdle, [&self] { return self.called || self.dismissed; });
    if (self.called || self.dismissed) return self.called;
    std::erase(idle_, &self);
    --workers_;
    return false;
  }

  static inline void (*poll_)() = nullptr;

  std::mutex mutex_;
  std::condition_variable done_;
  std::deque<Batch*> queue_;
  std::deque<Idle*> idle_;  // that waited longest first
  std::size_t workers_ = 0;
  std::array<std::size_t, 16> wanted_{};  // by the last batches; a search has several
  std::size_t n_calls_ = 0;
};

// Calls run(begin, end) for every `length` of n rows; the last run may be shorter.
template <typename Run>
void for_each_run(std::size_t n, std::size_t length, std::size_t num_threads, const Run& run) {
  ThreadPool::instance().parallel_for((n + length - 1) / length, num_threads, [&](std::size_t number) {
    run(number * length, std::min((number + 1) * length, n));
  });
}

// Rows that a task takes where each is little work.
inline constexpr std::size_t kTaskRows = 1024;

template <typename Visit>
void for_each_row(std::size_t n, std::size_t num_threads, const Visit& visit) {
  for_each_run(n, kTaskRows, num_threads, [&](std::size_t begin, std::size_t end) {
    for (std::size_t row = begin; row < end; ++row) visit(row);
  });
}

}  // namespace compressae
