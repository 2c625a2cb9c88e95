"""From HRESULT to exception. Holds only functions of the C level; see _errors.pxd."""
