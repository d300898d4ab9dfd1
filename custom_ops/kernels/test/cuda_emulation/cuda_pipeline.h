// The part of CUDA's header for asynchronous copies that the kernels use; see cuda_runtime.h in this folder.
#ifndef KERAS_RTRL_TEST_CUDA_EMULATION_PIPELINE_H_
#define KERAS_RTRL_TEST_CUDA_EMULATION_PIPELINE_H_

#include <stddef.h>

void __pipeline_memcpy_async(void* to, const void* from, size_t size);
void __pipeline_commit();
void __pipeline_wait_prior(size_t commits);

#endif  // KERAS_RTRL_TEST_CUDA_EMULATION_PIPELINE_H_
