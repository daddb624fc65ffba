/*-------------------------------------------------------------------------
 *
 * condition_scan.h
 *		Reading the events that match a condition.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_CONDITION_SCAN_H
#define EVPG_CONDITION_SCAN_H

#include "log/event.h"

typedef struct EvpgConditionScan EvpgConditionScan;

extern EvpgConditionScan *EvpgConditionScanBegin(const struct EvpgCondition *condition);
extern bool EvpgConditionScanNext(EvpgConditionScan *scan, EvpgEvent *event);
extern void EvpgConditionScanEnd(EvpgConditionScan *scan);

#endif							/* EVPG_CONDITION_SCAN_H */
