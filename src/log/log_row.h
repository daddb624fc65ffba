/*-------------------------------------------------------------------------
 *
 * log_row.h
 *		Reading the columns of a row of the log.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_LOG_ROW_H
#define EVPG_LOG_ROW_H

#include "executor/tuptable.h"

extern void EvpgLogRowRead(TupleTableSlot *slot);

#endif							/* EVPG_LOG_ROW_H */
