/*-------------------------------------------------------------------------
 *
 * stream_directory.h
 *		The shared directory of the newest events of streams.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_STREAM_DIRECTORY_H
#define EVPG_STREAM_DIRECTORY_H

#include "log/stream.h"

extern void EvpgStreamDirectoryInit(void);
extern uint64 EvpgStreamDirectoryEpoch(void);
extern bool EvpgStreamDirectoryFind(EvpgStream *stream);
extern void EvpgStreamDirectoryPut(const EvpgStream *stream, bool committed);
extern void EvpgStreamDirectoryForgetAtCommit(void);
extern void EvpgStreamDirectoryForget(void);
extern void EvpgStreamDirectoryForgetAll(void);

#endif							/* EVPG_STREAM_DIRECTORY_H */
