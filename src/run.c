/*-------------------------------------------------------------------------
 *
 * run.c
 *		One pass over all that is due.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "run.h"
#include "utils/timestamp.h"

bool
EvpgRunPass(void (*commit) (void), TimestampTz *next)
{
	*next = DT_NOEND;
	return false;
}
