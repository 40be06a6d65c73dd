import { kubernetesName, podUid } from '#shared/catalogue.ts'
import { EdgeMeshError, sentenceOf } from '#shared/errors.ts'
import type { KubernetesClient } from '#shared/kubernetes/client.ts'
import type { Secret } from '#shared/secret.ts'
import { audience, type TokenVerifier, type VerifiedToken } from './verifier.ts'

const deadlineMs = 8_000

interface TokenReview {
  status?: {
    authenticated?: boolean
    audiences?: string[]
    error?: string
    user?: { username?: string; extra?: Record<string, string[]> }
  }
}

/**
 * Asks the API server, which also knows whether the pod that a token is bound to still exists. A token for another
 * audience, one that is bound to no pod, or of someone who is no service account is refused.
 */
export class TokenReviewVerifier implements TokenVerifier {
  readonly #client: KubernetesClient

  constructor(client: KubernetesClient) {
    this.#client = client
  }

  async verify(token: Secret): Promise<VerifiedToken> {
    let review: TokenReview
    try {
      review = await this.#client.request<TokenReview>(
        'POST',
        '/apis/authentication.k8s.io/v1/tokenreviews',
        {
          body: {
            apiVersion: 'authentication.k8s.io/v1',
            kind: 'TokenReview',
            spec: { token: token.reveal(), audiences: [audience] },
          },
          deadlineMs,
        },
      )
    } catch (error) {
      throw new EdgeMeshError('unauthenticated', `Cannot verify the token now: ${sentenceOf(error)}`, error)
    }
    return readReview(review)
  }
}

/** Pure: what a TokenReview says; anything but a clear yes is `unauthenticated`. */
export function readReview({ status }: TokenReview): VerifiedToken {
  const refuse = (why: string): never => {
    throw new EdgeMeshError('unauthenticated', `Cannot accept the token: ${why}.`)
  }
  if (status?.authenticated !== true) refuse(status?.error ?? 'the API server does not know it')
  if (status?.audiences?.includes(audience) !== true) refuse(`it is not for the audience "${audience}"`)
  const { username = '', extra = {} } = status?.user ?? {}
  const [, namespace, serviceAccount] = /^system:serviceaccount:([^:]+):([^:]+)$/.exec(username) ?? []
  const [podName] = extra['authentication.kubernetes.io/pod-name'] ?? []
  const [uid] = extra['authentication.kubernetes.io/pod-uid'] ?? []
  if (namespace === undefined || serviceAccount === undefined) refuse('it is not of a service account')
  if (podName === undefined || uid === undefined) refuse('it is bound to no pod')
  try {
    return {
      namespace: kubernetesName(namespace, 'namespace'),
      serviceAccount: kubernetesName(serviceAccount, 'serviceAccount'),
      podName: kubernetesName(podName, 'pod'),
      podUid: podUid(uid, 'uid'),
    }
  } catch (error) {
    return refuse(sentenceOf(error))
  }
}
