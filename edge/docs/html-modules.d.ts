/** HTML files are bundled as text: wrangler's rule for them, and bundle.ts's. */
declare module '*.html' {
  const text: string
  export default text
}
