// Reads of mapped files, whose pages may have to come from disk.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>

#if defined(__unix__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace compressae {

// Asks for pages ahead once some reads have waited for the disk, so that the others wait together. A warm read takes a
// fraction of a microsecond, so that to ask for all of them at first would cost more than they do, and to look at the
// clock between any two keeps the processor from overlapping them.
class ColdReads {
 public:
  // Before reads[0], and some that follow it, in the order of addresses.
  template <typename Read>
  void before(std::span<const Read> reads) {
    if (is_asked_) return;
    const auto now = Clock::now();
    if (is_begun_ && now - last_ > kWait) {
      for (const Read& read : reads) ask(read.from, read.bytes);
      is_asked_ = true;
    }
    last_ = now;
    is_begun_ = true;
  }

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr std::chrono::microseconds kWait{40};

  static void ask(const std::uint8_t* from, std::size_t bytes) {
#if defined(__unix__)
    static const auto page = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
    const auto begin = reinterpret_cast<std::uintptr_t>(from) / page * page;
    const auto end = reinterpret_cast<std::uintptr_t>(from) + bytes;
    madvise(reinterpret_cast<void*>(begin), end - begin, MADV_WILLNEED);  // only advice, so it may fail
#else
    (void)from, (void)bytes;
#endif
  }

  bool is_begun_ = false, is_asked_ = false;
  Clock::time_point last_;
};

}  // namespace compressae
