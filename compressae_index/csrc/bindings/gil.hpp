// The lock of Python's interpreter, which is held only where its objects are touched.
#pragma once

#include <nanobind/nanobind.h>
#include <unistd.h>

namespace compressae::bindings {

// Other threads of Python's may run while this lives.
class WithoutGil {
 public:
  WithoutGil() : state_(PyEval_SaveThread()), outer_(innermost) { innermost = this; }
  WithoutGil(const WithoutGil&) = delete;
  WithoutGil& operator=(const WithoutGil&) = delete;
  ~WithoutGil() {
    innermost = outer_;
    take_back();
  }

  // Runs the handlers of pending signals. Throws what they raise, such as KeyboardInterrupt for Ctrl-C.
  static void poll() {
    if (innermost == nullptr) return;
    innermost->take_back();
    const Resumed resumed{*innermost};
    if (PyErr_CheckSignals() != 0) throw nanobind::python_error();
  }

 private:
  struct Resumed {
    WithoutGil& that;
    ~Resumed() { that.state_ = PyEval_SaveThread(); }
  };

  // Where Python has ended, it ends a daemon thread here by unwinding its stack, which frames that throw nothing answer
  // by ending the process. Such a thread waits instead, as Python does itself from version 3.14 on.
  void take_back() noexcept {
    try {
      PyEval_RestoreThread(state_);
    } catch (...) {
      for (;;) pause();
    }
  }

  static inline constinit thread_local WithoutGil* innermost = nullptr;

  PyThreadState* state_;
  WithoutGil* outer_;
};

// Returns work(), run without the GIL.
template <typename Work>
auto without_gil(const Work& work) {
  const WithoutGil released;
  return work();
}

}  // namespace compressae::bindings
