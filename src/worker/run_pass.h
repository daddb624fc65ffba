/*-------------------------------------------------------------------------
 *
 * run_pass.h
 *		One pass over all work outside the transactions of appenders.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_RUN_PASS_H
#define EVPG_RUN_PASS_H

#include "datatype/timestamp.h"

extern bool EvpgRunPass(void (*commit) (void), TimestampTz *next);
extern bool EvpgRunPassHadSagas(void);

#endif							/* EVPG_RUN_PASS_H */
