"""The paper's claims: what each says, the planned contrast that tests it, and the verdict of the runs."""
