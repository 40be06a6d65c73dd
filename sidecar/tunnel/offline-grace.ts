import { X509Certificate } from 'node:crypto'
import type { TLSSocket } from 'node:tls'
import { EdgeMeshError } from '#shared/errors.ts'
import type { Identity } from '../control/identity.ts'
import type { ServerContact } from '../control/server-contact.ts'

/** OIDs of extended key usage. */
const purposes = { server: '1.3.6.1.5.5.7.3.1', client: '1.3.6.1.5.5.7.3.2' } as const
export type Role = keyof typeof purposes

export interface Situation {
  /** Roots, PEM. */
  trustBundle: string
  /** What the peer is to us. */
  role: Role
  graceMs: number
  /** Since when our own server connection is down; undefined while it is up. All times in ms since the epoch. */
  downSince: number | undefined
  now: number
}

/**
 * Why an expired leaf is refused, or undefined where it is good enough. TLS reports only the last of its findings, so
 * everything that it would have checked is checked here again: by "expired" it may mean "forged, and expired".
 */
export function expiredLeafRefusal(leaf: X509Certificate, situation: Situation): string | undefined {
  const { trustBundle, role, graceMs, downSince, now } = situation
  const [notBefore, notAfter] = validity(leaf)
  if (!(graceMs > 0)) return 'there is no offline grace'
  if (downSince === undefined) return 'the server is there, which would have renewed it'
  // It was not renewed while we could reach the server: its pod may have been deleted.
  if (!(downSince < notAfter)) return 'it had expired before the server went away'
  if (!(notBefore <= now)) return 'it is not valid yet'
  if (!(notAfter <= now)) return 'it has not expired; something else is wrong with it'
  if (!(now - notAfter <= graceMs)) return 'it expired longer ago than the offline grace'
  if (leaf.ca) return 'it is an authority'
  if (!leaf.keyUsage?.includes(purposes[role])) return `it is not for a TLS ${role}`
  if (!rootsOf(trustBundle).some((root) => hasIssued(root, leaf, now))) return 'no trusted root has signed it'
  return undefined
}

/** Leaves are signed by the roots themselves (pathlen 0), so there is no chain to be built. */
function hasIssued(root: X509Certificate, leaf: X509Certificate, now: number): boolean {
  const [notBefore, notAfter] = validity(root)
  const alive = notBefore <= now && now <= notAfter
  return (
    alive && root.ca && root.verify(root.publicKey) && leaf.checkIssued(root) && leaf.verify(root.publicKey)
  )
}

function validity(certificate: X509Certificate): [number, number] {
  return [Date.parse(certificate.validFrom), Date.parse(certificate.validTo)]
}

const pem = /-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----/g

function rootsOf(trustBundle: string): X509Certificate[] {
  return (trustBundle.match(pem) ?? []).map((text) => new X509Certificate(text))
}

interface Session {
  readonly closed: boolean
  close(): void
  once(event: 'close', listener: () => void): unknown
}

/** The longest that a timer of Node can wait, in ms. */
const maxTimerMs = 2 ** 31 - 1

/** Lets peers that have lost the server go on with expired certificates, for a stated time. Off when it is 0. */
export class OfflineGrace {
  readonly #graceMs: number
  readonly #contact: ServerContact
  readonly #identity: Identity
  readonly #held = new Set<Session>()

  constructor(graceMs: number, contact: ServerContact, identity: Identity) {
    this.#graceMs = graceMs
    this.#contact = contact
    this.#identity = identity
    contact.onUp(() => {
      for (const session of this.#held) session.close()
    })
  }

  /** Whether TLS itself is to refuse what it cannot verify; if not, `check` must be asked. */
  get strict(): boolean {
    return !(this.#graceMs > 0)
  }

  /** Sessions of peers with an expired certificate. */
  get sessions(): number {
    return this.#held.size
  }

  /**
   * The certificate of the peer. Throws what TLS would have, unless the peer is verified or the grace covers it. To be
   * called once: on a client's socket, Node gives the certificate out but once (24.21).
   */
  check(socket: TLSSocket, role: Role): { certificate: X509Certificate; byGrace: boolean } {
    this.#checkOwn()
    const certificate = socket.getPeerX509Certificate()
    if (certificate === undefined) throw refusal('CERTIFICATE_REQUIRED', 'it has no certificate')
    if (socket.authorized) return { certificate, byGrace: false }
    const verdict = String(socket.authorizationError ?? 'unknown')
    if (verdict !== 'CERT_HAS_EXPIRED') throw refusal(verdict, verdict)
    const why = expiredLeafRefusal(certificate, {
      trustBundle: this.#identity.certificate?.trustBundle ?? '',
      role,
      graceMs: this.#graceMs,
      downSince: this.#contact.downSince,
      now: Date.now(),
    })
    if (why !== undefined) throw refusal(verdict, `its certificate has expired, and ${why}`)
    return { certificate, byGrace: true }
  }

  /** A session that the grace has let in ends (its streams may finish) when the server is back or the grace over. */
  hold(session: Session, notAfter: number): void {
    this.#held.add(session)
    const leftMs = notAfter + this.#graceMs - Date.now()
    const timer = setTimeout(() => session.close(), Math.min(Math.max(leftMs, 0), maxTimerMs))
    timer.unref()
    session.once('close', () => {
      clearTimeout(timer)
      this.#held.delete(session)
    })
  }

  /** Both sides must agree to it: with an expired certificate of our own we use the tunnel by our own grace only. */
  #checkOwn(): void {
    const { notAfter = 0 } = this.#identity.certificate ?? {}
    const ago = Date.now() - notAfter
    if (ago <= 0 || ago <= this.#graceMs) return
    throw new EdgeMeshError(
      'unauthenticated',
      'Cannot use the tunnel: the certificate of this pod has expired. The server renews it once it is reached.',
    )
  }
}

/** With the code that Node would have used. */
function refusal(code: string, why: string): Error {
  return Object.assign(new Error(`Cannot accept the peer: ${why}.`), { code })
}
