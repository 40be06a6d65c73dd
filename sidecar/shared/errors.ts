/**
 * Every code that an EdgeMeshError can carry. README.md lists them with what to do; a code never changes its
 * meaning, so scripts may match on it.
 */
export type ErrorCode =
  | 'bad-config'
  | 'bad-message'
  | 'bad-manifest'
  | 'rules-failed'
  | 'kernel-unfit'
  | 'no-original-destination'
  | 'unauthenticated'
  | 'forbidden'
  | 'identity-mismatch'
  | 'not-connected'
  | 'no-endpoint'
  | 'unreachable'
  | 'refused'
  | 'timeout'
  | 'reset'
  | 'limit'
  | 'stopping'
  | 'kubernetes'
  | 'lab-failed'

/**
 * The one error class. The message is a sentence "Cannot X: what is the case. What to do."
 * `cause` keeps what was caught, so that nothing is swallowed.
 */
export class EdgeMeshError extends Error {
  readonly code: ErrorCode

  constructor(code: ErrorCode, message: string, cause?: unknown) {
    super(message, cause === undefined ? undefined : { cause })
    this.name = 'EdgeMeshError'
    this.code = code
  }
}

/** The sentence of anything that was thrown, with its causes, on one line. */
export function sentenceOf(error: unknown): string {
  const parts: string[] = []
  for (let e = error, depth = 0; e !== undefined && e !== null && depth < 5; depth++) {
    const text = e instanceof Error ? e.message : String(e)
    if (!parts.some((p) => p.includes(text))) parts.push(text)
    e = e instanceof Error ? e.cause : undefined
  }
  return parts.join(' <- ').replaceAll(/\s*\n\s*/g, ' ')
}

/** The code of an EdgeMeshError or of a Node system error (`ECONNREFUSED`), else `unknown`. */
export function codeOf(error: unknown): string {
  if (error instanceof Error && 'code' in error && typeof error.code === 'string') return error.code
  return 'unknown'
}
