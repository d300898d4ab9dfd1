// Runs the blocks of a kernel for cuda_runtime.h in this folder.
#include <string.h>
#include <ucontext.h>

#include <deque>
#include <memory>
#include <utility>
#include <vector>

#include "cuda_pipeline.h"
#include "cuda_runtime.h"

dim3 gridDim, blockDim, blockIdx, threadIdx;

namespace {

constexpr size_t kStack = 64 * 1024;
bool reversed = false;

struct Copy {
  void* to;
  const void* from;
  size_t size;
};

struct Thread {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStack]};
  dim3 index;
  bool done = false;
  std::vector<Copy> copies;                // not committed
  std::deque<std::vector<Copy>> committed;  // and not waited for
};

std::vector<Thread> threads;
Thread* current = nullptr;
ucontext_t scheduler;
const std::function<void()>* body = nullptr;

void run_thread() {
  (*body)();
  current->done = true;
  swapcontext(&current->context, &scheduler);
}

void start(Thread& thread, unsigned index) {
  getcontext(&thread.context);
  thread.context.uc_stack.ss_sp = thread.stack.get();
  thread.context.uc_stack.ss_size = kStack;
  thread.context.uc_link = nullptr;
  thread.index = dim3(index % blockDim.x, index / blockDim.x % blockDim.y, index / blockDim.x / blockDim.y);
  thread.done = false;
  thread.copies.clear();
  thread.committed.clear();
  makecontext(&thread.context, run_thread, 0);
}

void run_block(size_t count) {
  for (size_t i = 0; i < count; ++i) start(threads[i], unsigned(i));
  for (size_t running = count; running > 0;) {
    for (size_t i = 0; i < count; ++i) {
      Thread& thread = threads[reversed ? count - 1 - i : i];
      if (thread.done) continue;
      current = &thread;
      threadIdx = thread.index;
      swapcontext(&scheduler, &thread.context);
      if (thread.done) --running;
    }
  }
}

}  // namespace

void __syncthreads() { swapcontext(&current->context, &scheduler); }

void __pipeline_memcpy_async(void* to, const void* from, size_t size) { current->copies.push_back({to, from, size}); }

void __pipeline_commit() {
  current->committed.push_back(std::move(current->copies));
  current->copies.clear();
}

void __pipeline_wait_prior(size_t commits) {
  for (; current->committed.size() > commits; current->committed.pop_front())
    for (const Copy& copy : current->committed.front()) memcpy(copy.to, copy.from, copy.size);
}

void cuda_emulation_reverse(int on) { reversed = on; }

cudaError_t cuda_emulation_launch(const cudaLaunchConfig_t& config, const std::function<void()>& thread) {
  const size_t count = size_t(config.blockDim.x) * config.blockDim.y * config.blockDim.z;
  // As the device does; one dimension of blocks is all the kernels use.
  if (count == 0 || count > 1024 || config.gridDim.x == 0 || config.gridDim.y != 1 || config.gridDim.z != 1)
    return cudaErrorInvalidConfiguration;
  if (threads.size() < count) threads = std::vector<Thread>(count);
  gridDim = config.gridDim;
  blockDim = config.blockDim;
  body = &thread;
  for (unsigned block = 0; block < gridDim.x; ++block) {
    blockIdx = dim3(block, 0, 0);
    run_block(count);
  }
  return cudaSuccess;
}
