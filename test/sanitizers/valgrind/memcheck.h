/*-------------------------------------------------------------------------
 *
 * valgrind/memcheck.h
 *		Stands in for valgrind's header when the server of make test-sanitizers is built
 *		with AddressSanitizer.
 *
 * AddressSanitizer knows what malloc() gives, and a memory context takes blocks of
 * it and gives chunks of these: writing behind a chunk or into one that was freed
 * stays within a block.  With USE_VALGRIND the server tells valgrind about chunks
 * by the requests below (utils/memdebug.h).  Here they tell AddressSanitizer, which
 * then sees the chunks of all memory contexts, cells of lists, and buffers that are
 * not pinned.  Whether memory is initialized it does not know; valgrind does.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_TEST_MEMCHECK_H
#define EVPG_TEST_MEMCHECK_H

#include <sanitizer/asan_interface.h>

#define VALGRIND_MAKE_MEM_NOACCESS(address, size) __asan_poison_memory_region((address), (size))
#define VALGRIND_MAKE_MEM_UNDEFINED(address, size) __asan_unpoison_memory_region((address), (size))
#define VALGRIND_MAKE_MEM_DEFINED(address, size) __asan_unpoison_memory_region((address), (size))

/* a chunk begins to be one, or gets another size; at its end the memory context makes it inaccessible by the above */
#define VALGRIND_MEMPOOL_ALLOC(context, address, size) __asan_unpoison_memory_region((address), (size))
#define VALGRIND_MEMPOOL_CHANGE(context, old_address, address, size) __asan_unpoison_memory_region((address), (size))
#define VALGRIND_MEMPOOL_FREE(context, address) ((void) 0)
#define VALGRIND_CREATE_MEMPOOL(context, redzones, zeroed) ((void) 0)
#define VALGRIND_DESTROY_MEMPOOL(context) ((void) 0)

#define VALGRIND_CHECK_MEM_IS_DEFINED(address, size) ((void) 0)
#define VALGRIND_GET_VBITS(address, bits, size) (0)

#endif							/* EVPG_TEST_MEMCHECK_H */
