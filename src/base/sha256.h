/*-------------------------------------------------------------------------
 *
 * sha256.h
 *		SHA-256 of what is added piece by piece.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_SHA256_H
#define EVPG_SHA256_H

#include "common/cryptohash.h"
#include "common/sha2.h"

#define EVPG_SHA256_LENGTH PG_SHA256_DIGEST_LENGTH

typedef pg_cryptohash_ctx EvpgSha256;

extern EvpgSha256 *EvpgSha256Begin(void);
extern void EvpgSha256Add(EvpgSha256 *hash, const void *bytes, size_t length);
extern void EvpgSha256AddText(EvpgSha256 *hash, const char *text);
extern void EvpgSha256End(EvpgSha256 *hash, void *digest);
extern char *EvpgSha256EndHex(EvpgSha256 *hash);

#endif							/* EVPG_SHA256_H */
