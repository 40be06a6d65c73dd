import type { Secret } from '#shared/secret.ts'

/** What a verified token says of its bearer. */
export interface VerifiedToken {
  namespace: string
  serviceAccount: string
  podUid: string
  podName: string
}

/** Verifies a pod's projected ServiceAccount token: by configured keys, or by the API server's TokenReview. */
export interface TokenVerifier {
  /** Rejects with `unauthenticated`; the message never holds the token. */
  verify(token: Secret): Promise<VerifiedToken>
}

/** The audience that a token must be made for; one for the API server is of no use here. */
export const audience = 'edgemesh'
