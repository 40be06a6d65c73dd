import { CertificateAuthority } from '#shared/authority/certificate-authority.ts'
import type { Logger } from '#shared/log.ts'
import { watchFolder } from '../catalogue/folder.ts'
import type { FolderBackend } from '../config.ts'
import { MemoryDirectory } from '../replicas/directory.ts'
import { KeyVerifier } from '../token-verifier/keys.ts'
import type { Backend } from './backend.ts'

/** Without Kubernetes: manifests in a folder, keys and the CA in files. */
export async function openFolder(
  config: FolderBackend,
  { trustDomain, replica }: { trustDomain: string; replica: string },
  log: Logger,
): Promise<Backend> {
  const authority = await CertificateAuthority.open(config.stateDir, trustDomain)
  const verifier = new KeyVerifier(config.tokenKeys, config.tokenIssuer, log)
  const source = await watchFolder(config.manifests, log)
  const directory = new MemoryDirectory(replica, config.peers)
  return { authority, directory, verifier, source, close: () => source.close() }
}
