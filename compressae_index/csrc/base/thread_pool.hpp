// A process-wide pool of threads that grows to what has been asked for.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace compressae {

class ThreadPool {
 public:
  static ThreadPool& instance() {
    // Deliberately leaked: workers may still wait in it while the process ends, and a forked child, which
    // has none of its parent's threads, starts a pool of its own.
    static std::mutex mutex;
    static ThreadPool* pool = nullptr;
    static pid_t owner = 0;
    const std::lock_guard lock(mutex);
    if (owner != getpid()) {
      pool = new ThreadPool();
      owner = getpid();
    }
    return *pool;
  }

  // Runs task(0) ... task(count - 1) on at most num_threads threads, the calling one included, and returns
  // when all are done. The first exception that a task throws is thrown again here.
  void parallel_for(std::size_t count, std::size_t num_threads, const std::function<void(std::size_t)>& task) {
    const std::size_t helpers = std::min(std::max<std::size_t>(num_threads, 1), count);
    if (helpers <= 1) {
      for (std::size_t i = 0; i < count; ++i) task(i);
      return;
    }
    Batch batch{count, &task};
    batch.running = helpers - 1;
    {
      const std::lock_guard lock(mutex_);
      while (workers_ < helpers - 1) start_worker();
      for (std::size_t i = 0; i + 1 < helpers; ++i) queue_.push_back(&batch);
    }
    wake_.notify_all();
    batch.run();
    // What no worker has begun is taken back, so that a busy pool delays nobody.
    std::unique_lock lock(mutex_);
    const std::size_t waiting = std::erase(queue_, &batch);
    batch.running -= waiting;
    done_.wait(lock, [&] { return batch.running == 0; });
    if (batch.error) std::rethrow_exception(batch.error);
  }

 private:
  struct Batch {
    Batch(std::size_t n, const std::function<void(std::size_t)>* f) : count(n), task(f) {}

    void run() {
      for (std::size_t i = next++; i < count; i = next++) {
        try {
          (*task)(i);
        } catch (...) {
          const std::lock_guard lock(error_mutex);
          if (!error) error = std::current_exception();
          next = count;
        }
      }
    }

    const std::size_t count;
    const std::function<void(std::size_t)>* task;
    std::atomic<std::size_t> next{0};
    std::size_t running = 0;  // guarded by the pool's mutex
    std::mutex error_mutex;
    std::exception_ptr error;
  };

  void start_worker() {
    std::thread([this] {
      std::unique_lock lock(mutex_);
      for (;;) {
        wake_.wait(lock, [&] { return !queue_.empty(); });
        Batch* batch = queue_.front();
        queue_.pop_front();
        lock.unlock();
        batch->run();
        lock.lock();
        if (--batch->running == 0) done_.notify_all();
      }
    }).detach();
    ++workers_;
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  std::condition_variable done_;
  std::deque<Batch*> queue_;
  std::size_t workers_ = 0;
};

}  // namespace compressae
