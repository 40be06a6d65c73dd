import type { CertificateAuthority } from '#shared/authority/certificate-authority.ts'
import type { CatalogueSource } from '../catalogue/source.ts'
import type { Directory } from '../replicas/directory.ts'
import type { TokenVerifier } from '../token-verifier/verifier.ts'

/** All that the server has from outside of itself. */
export interface Backend {
  source: CatalogueSource
  verifier: TokenVerifier
  authority: CertificateAuthority
  /** Where the other replicas are, and the pods that are connected to them. */
  directory: Directory
  /** Tells the world who is connected, where there is somebody to tell; called once the server listens. */
  announce?(present: () => { version: number; uids: string[] }): void
  close(): Promise<void>
}
