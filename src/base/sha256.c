/*-------------------------------------------------------------------------
 *
 * sha256.c
 *		SHA-256 of what is added piece by piece, by PostgreSQL's own functions.
 *
 * Begin allocates in CurrentMemoryContext, End frees.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/sha256.h"
#include "utils/builtins.h"

static void
check_hash(EvpgSha256 *hash, int result)
{
	if (result < 0)
		elog(ERROR, "could not compute SHA-256: %s", pg_cryptohash_error(hash));
}

/* Begins a hash; end it with EvpgSha256End or EvpgSha256EndHex. */
EvpgSha256 *
EvpgSha256Begin(void)
{
	EvpgSha256 *hash = pg_cryptohash_create(PG_SHA256);

	check_hash(hash, hash == NULL ? -1 : pg_cryptohash_init(hash));
	return hash;
}

/* Adds bytes. */
void
EvpgSha256Add(EvpgSha256 *hash, const void *bytes, size_t length)
{
	check_hash(hash, pg_cryptohash_update(hash, bytes, length));
}

/* Adds a string with its NUL, which keeps neighbours apart. */
void
EvpgSha256AddText(EvpgSha256 *hash, const char *text)
{
	EvpgSha256Add(hash, text, strlen(text) + 1);
}

/* Ends a hash and writes its EVPG_SHA256_LENGTH bytes. */
void
EvpgSha256End(EvpgSha256 *hash, void *digest)
{
	check_hash(hash, pg_cryptohash_final(hash, digest, EVPG_SHA256_LENGTH));
	pg_cryptohash_free(hash);
}

/* Ends a hash and returns it in hexadecimal digits, in CurrentMemoryContext. */
char *
EvpgSha256EndHex(EvpgSha256 *hash)
{
	char		digest[EVPG_SHA256_LENGTH];
	char	   *text = palloc(2 * EVPG_SHA256_LENGTH + 1);

	EvpgSha256End(hash, digest);
	text[hex_encode(digest, sizeof(digest), text)] = '\0';
	return text;
}
