/*-------------------------------------------------------------------------
 *
 * log.h
 *		The event log: inserting events, and scanning those of a stream.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_LOG_H
#define EVPG_LOG_H

#include "event.h"
#include "stream.h"

typedef struct EvpgLogScan EvpgLogScan;

extern void EvpgLogAppend(EvpgStream *stream, EvpgEvent *events, int count);
extern EvpgLogScan *EvpgLogScanBegin(const EvpgStream *stream, int64 from_version, bool backwards);
extern bool EvpgLogScanNext(EvpgLogScan *scan, EvpgEvent *event);
extern void EvpgLogScanEnd(EvpgLogScan *scan);

#endif							/* EVPG_LOG_H */
