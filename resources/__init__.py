"""What an asset is handed: the artifact store and the launcher. No stage is known here."""
